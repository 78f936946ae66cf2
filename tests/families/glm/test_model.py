"""The GLM model: the papers' sizes, the authors' numbers, and what a token may see."""

import json
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from stemma.errors import InputError
from stemma.families.glm.checkpoint import from_published, to_published
from stemma.families.glm.model import GLM, PRESETS, GLMConfig
from stemma.families.weights import build_empty
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.layers.masks import Mask

from . import reference

# V H + 2 (max + 1) H + L (12 H^2 + 13 H) + 2 H at the published sizes.
PARAMETERS = {
    "base": 109_338_624,
    "large": 334_688_256,
    "410m": 410_265_600,
    "515m": 514_632_960,
    "2b": 1_920_122_880,
    "10b": 9_880_682_496,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_parameters_of_the_published_sizes(preset: str) -> None:
    model = build_empty(lambda: GLM(PRESETS[preset]))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[preset]
    assert model.output_weight is not None and model.config.padded_vocabulary == model.config.vocabulary


def build(layers: int, hidden: int, heads: int, vocabulary: int, context: int) -> tuple[GLM, dict[str, Tensor]]:
    tensors = reference.random_tensors(layers, hidden, vocabulary, context)
    published = {
        "model_type": "glm",
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_sequence_length": context,
    }
    return from_published(published, tensors).eval(), tensors


def gradients(model: GLM) -> dict[str, Tensor]:
    """The gradients of a model under the published names."""
    shell = deepcopy(model)
    for parameter, source in zip(shell.parameters(), model.parameters(), strict=True):
        assert source.grad is not None
        parameter.data = source.grad
    return dict(to_published(shell)[1])


def batch(vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three rows with contexts of different lengths and two spans each."""
    tokens = torch.randint(vocabulary, (3, 14), generator=torch.Generator().manual_seed(1))
    context_lengths = torch.tensor([5, 9, 7])
    positions = torch.zeros(3, 2, 14, dtype=torch.int64)
    for row, length in enumerate(context_lengths.tolist()):
        positions[row, 0, :length] = torch.arange(length)
        middle = length + (14 - length) // 2
        positions[row, 0, length:middle], positions[row, 0, middle:] = 3, 1
        positions[row, 1, length:middle] = torch.arange(1, middle - length + 1)
        positions[row, 1, middle:] = torch.arange(1, 14 - middle + 1)
    return tokens, positions, context_lengths


@pytest.mark.parametrize("shape", [(2, 24, 3, 61, 16), (1, 16, 1, 64, 20), (3, 20, 5, 130, 15)])
def test_logits_and_gradients_are_those_of_the_plain_computation(shape: tuple[int, int, int, int, int]) -> None:
    model, tensors = build(*shape)
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    tokens, positions, context_lengths = batch(shape[3])
    expected = reference.logits(tensors, shape[2], tokens, positions, context_lengths)
    mask = Mask(causal=True, prefix_lengths=context_lengths)
    torch.testing.assert_close(model(tokens, positions, mask), expected, rtol=0, atol=1e-5)

    F.cross_entropy(expected.flatten(0, 1), tokens.flatten()).backward()
    hidden = model.hidden(tokens, positions, mask).flatten(0, 1)
    linear_cross_entropy(hidden, model.output_weight, tokens.flatten()).backward()
    found = gradients(model)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            found[name], tensor.grad, rtol=0, atol=1e-5 * max(float(tensor.grad.abs().max()), 0.1)
        )


@pytest.mark.skipif(not reference.VECTORS.is_dir(), reason="the authors' reference vectors are not here")
def test_the_numbers_of_the_authors_code() -> None:
    config = json.loads((reference.VECTORS / "config.json").read_text())
    model = from_published({"model_type": "glm", **config}, load_file(reference.VECTORS / "weights.safetensors")).eval()
    expected = load_file(reference.VECTORS / "expected.safetensors")
    mask = Mask(causal=True, prefix_lengths=expected["context_lengths"])
    logits = model(expected["tokens"], expected["positions"], mask)
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-5)
    loss = F.cross_entropy(logits.flatten(0, 1), expected["tokens"].flatten())
    assert loss.item() == pytest.approx(expected["loss"].item(), abs=1e-5)
    loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected.pop(f"grad.{name}"), rtol=0, atol=1e-5)
    assert not [name for name in expected if name.startswith("grad.")]


def test_the_reference_of_these_tests_is_the_authors() -> None:
    """The plain computation itself gives their numbers, where they are here."""
    if not reference.VECTORS.is_dir():
        pytest.skip("the authors' reference vectors are not here")
    expected = load_file(reference.VECTORS / "expected.safetensors")
    logits = reference.logits(
        load_file(reference.VECTORS / "weights.safetensors"),
        4,
        expected["tokens"],
        expected["positions"],
        expected["context_lengths"],
    )
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-5)


def test_part_a_sees_itself_and_a_span_what_is_before_it() -> None:
    """Which logits change when one token does: exactly those that may see it."""
    model, _ = build(2, 24, 3, 61, 16)
    tokens, positions, context_lengths = batch(61)
    mask = Mask(causal=True, prefix_lengths=context_lengths)
    before = model(tokens, positions, mask)
    for changed in range(tokens.shape[1]):
        other = tokens.clone()
        other[:, changed] = (other[:, changed] + 1) % 61
        moved = (model(other, positions, mask) - before).abs().amax(-1) > 1e-6
        for row, length in enumerate(context_lengths.tolist()):
            expected = [changed < length or changed <= place for place in range(tokens.shape[1])]
            assert moved[row].tolist() == expected


def test_padding_behind_part_b_changes_nothing() -> None:
    model, _ = build(2, 24, 3, 61, 16)
    tokens, positions, context_lengths = batch(61)
    mask = Mask(causal=True, prefix_lengths=context_lengths)
    padded = model(F.pad(tokens, (0, 5), value=7), F.pad(positions, (0, 5)), mask)
    torch.testing.assert_close(
        padded[:, :14], model(tokens, positions, Mask(causal=True, prefix_lengths=context_lengths))
    )


def test_the_mask_has_no_float_per_pair() -> None:
    tokens, positions, context_lengths = batch(61)
    query = torch.zeros(3, 2, 14, 8)
    lowered = Mask(causal=True, prefix_lengths=context_lengths).lower(query, query)
    assert lowered.dense is None or lowered.dense.dtype == torch.bool


def test_without_positions_it_reads_a_text_without_blanks() -> None:
    model, _ = build(2, 24, 3, 61, 16)
    tokens = batch(61)[0]
    positions = torch.stack([torch.arange(14), torch.zeros(14, dtype=torch.int64)]).expand(3, -1, -1)
    torch.testing.assert_close(
        model(tokens), model(tokens, positions, Mask(causal=True, prefix_lengths=torch.tensor([14] * 3)))
    )
    with pytest.raises(InputError, match="17 positions, got 20 tokens"):
        model(torch.zeros(1, 20, dtype=torch.int64))


def test_one_table_without_the_second_position() -> None:
    model = GLM(GLMConfig(vocabulary=61, context=16, layers=1, hidden=24, heads=3, block_positions=False)).eval()
    tokens, positions, context_lengths = batch(61)
    assert model.position_embedding.weight.shape == (16, 24) and model.block_position_embedding is None
    other = positions.clone()
    other[:, 1] = 5
    mask = Mask(causal=True, prefix_lengths=context_lengths)
    assert torch.equal(model(tokens, positions, mask), model(tokens, other, mask))


def test_initial_spread() -> None:
    torch.manual_seed(0)
    model = GLM(GLMConfig(vocabulary=512, context=64, layers=8, hidden=128, heads=2))
    for name, parameter in model.named_parameters():
        if name.endswith(("output.weight", "down.weight")):
            assert parameter.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # sqrt(2 * 8 layers) = 4
        elif parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
        else:
            assert bool((parameter == (1.0 if "norm.weight" in name else 0.0)).all())
