"""The Mistral model: sizes of the papers, how far information travels, packed documents, initial weights."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from stemma.errors import InputError
from stemma.families.mistral.model import PRESETS, Mistral, MistralConfig
from stemma.layers import masks, tiled_attention
from stemma.layers.masks import Mask

from .reference import randomized, some_tokens

SMALL = MistralConfig(
    vocabulary=97, context=200, layers=2, hidden=32, heads=4, key_value_heads=2, feed_forward=48, windows=(6,)
)


@pytest.fixture(params=["tiles", "dense"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both roads of windowed attention on a CPU, with tiles so small that a text has many."""
    monkeypatch.setattr(masks, "LEAST_PAIRS", 0 if request.param == "tiles" else 10**9)
    monkeypatch.setattr(tiled_attention, "LEAST_QUERIES", 4)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        # As transformers counts the published checkpoints mistralai/Mistral-7B-v0.1, -v0.3 and Mixtral-8x7B-v0.1.
        ("mistral-7b", 7_241_732_096),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("mixtral-8x7b", 46_702_792_704),
    ],
)
def test_parameters_of_the_published_sizes(preset: str, parameters: int) -> None:
    with torch.device("meta"):
        model = Mistral(PRESETS[preset])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 6])
def test_information_travels_exactly_window_minus_one_tokens_a_layer(window: int, layers: int) -> None:
    model = randomized(Mistral(replace(SMALL, layers=layers, windows=(window,)))).double()
    tokens = some_tokens(40, batch=1)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 97
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    reached = difference.nonzero().flatten().tolist()
    assert reached == list(range(7, 7 + layers * (window - 1) + 1))


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("windows", [(6,), (None,), (None, 3)])
def test_packed_documents_are_what_they_are_alone(windows: tuple[int | None, ...]) -> None:
    """Logits and gradients of rows that hold several documents, against each document by itself."""
    model = randomized(Mistral(replace(SMALL, windows=windows))).double()
    tokens = some_tokens(40, batch=2)
    cuts = [[0, 13, 30, 40], [0, 1, 39, 40]]
    ids = torch.stack([sum((torch.arange(40) >= cut).long() for cut in row) for row in cuts])
    packed = model(tokens, mask=Mask(causal=True, document_ids=ids))
    pieces = [(row, start, end) for row in (0, 1) for start, end in pairwise(cuts[row])]
    alone = [model(tokens[None, row, start:end])[0] for row, start, end in pieces]
    # The angles are float32, so that the same places of a row and of a document differ by nothing.
    for (row, start, end), expected in zip(pieces, alone, strict=True):
        torch.testing.assert_close(packed[row, start:end], expected, rtol=0, atol=1e-10)
    weights = list(model.parameters())
    ours = torch.autograd.grad(packed.square().sum(), weights)
    expected = torch.autograd.grad(sum(piece.square().sum() for piece in alone), weights)
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for gradient, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12 * scale)


def test_positions_are_relative() -> None:
    """Rotary positions: a text that starts elsewhere gets the same logits."""
    model, tokens = randomized(Mistral(SMALL)), some_tokens(20)
    shifted = model(tokens, positions=torch.arange(1000, 1020).expand(3, -1))
    torch.testing.assert_close(shifted, model(tokens), rtol=0, atol=1e-3)
    spread = model(tokens, positions=torch.arange(0, 40, 2).expand(3, -1))
    assert (spread - model(tokens)).abs().max() > 0.05


def test_angles_are_exact_in_bfloat16() -> None:
    """A bfloat16 model tells positions above 256 apart, which bfloat16 cannot count."""
    model = randomized(Mistral(replace(SMALL, windows=(None,)))).bfloat16()
    tokens = some_tokens(150, batch=1)
    exact = randomized(Mistral(replace(SMALL, windows=(None,))))
    error = (model(tokens).float() - exact(tokens)).abs().mean()
    positions = torch.arange(150)
    late = (model(tokens, positions=positions + 20_000).float() - exact(tokens, positions=positions)).abs().mean()
    assert late < 1.3 * error


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = Mistral(MistralConfig(vocabulary=4096, layers=8, hidden=256, heads=4, key_value_heads=2, feed_forward=700))
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert (weight == 1).all()
            continue
        residual = name.endswith(("attention.output.weight", "down.weight"))
        assert weight.std().item() == pytest.approx(0.02 / math.sqrt(16) if residual else 0.02, rel=0.02), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 33}, r"hidden \(33\) must be a multiple of heads"),
        ({"key_value_heads": 3}, r"heads \(4\) must be a multiple of key_value_heads \(3\)"),
        ({"head_dim": 7}, "heads are 7 wide"),
        ({"windows": (4, 0)}, r"windows is \(4, 0\)"),
        ({"experts": 2, "experts_per_token": 3}, r"experts_per_token is 3, expected 1 to experts \(2\)"),
    ],
)
def test_configurations_that_make_no_model(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_too_long_a_text() -> None:
    with pytest.raises(InputError, match="at most 200 tokens at once, got 201"):
        Mistral(SMALL)(some_tokens(201))
