"""The GPT model: sizes of the papers, and what a token may see, against brute force."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from stemma.families.gpt.model import GPT, PRESETS, GPTConfig
from stemma.layers import masks
from stemma.layers.masks import Mask

# Parameters by the formula of GPT-2's architecture, V d + context d + L (12 d^2 + 13 d) + 2 d, at the papers' sizes;
# GPT-1's and GPT-2's are also what transformers counts in the published checkpoints.
PARAMETERS = {
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-125m": 125_226_240,
    "gpt3-350m": 355_871_744,
    "gpt3-760m": 760_300_032,
    "gpt3-1.3b": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_853_386_240,
    "gpt3-175b": 174_604_259_328,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_parameters_of_the_published_sizes(preset: str) -> None:
    config = PRESETS[preset]
    with torch.device("meta"):
        model = GPT(config)
    padding = (config.padded_vocabulary - config.vocabulary) * config.hidden
    assert sum(parameter.numel() for parameter in model.parameters()) - padding == PARAMETERS[preset]


def test_gpt3_alternates_dense_and_banded_layers() -> None:
    config = PRESETS["gpt3-125m"]
    assert config.context == 2048
    assert [config.window(layer) for layer in range(4)] == [None, config.band, None, config.band]


def brute_force(model: GPT, tokens: list[int]) -> np.ndarray:
    """Logits [length, vocabulary] of a pre-norm model, in float64, with a loop over each query and each key it sees."""
    state = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    config = model.config
    width = config.hidden // config.heads

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_epsilon)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def affine(x: np.ndarray, name: str) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = state["token_embedding.weight"][tokens] + state["position_embedding.weight"][: len(tokens)]
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        y = norm(x, f"{block}.attention_norm")
        query, key, value = (affine(y, f"{block}.attention.{part}") for part in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(config.heads):
            columns = slice(head * width, (head + 1) * width)
            for i in range(len(tokens)):
                oldest = 0 if layer % 2 == 0 else max(0, i - config.band + 1)
                scores = [float(query[i, columns] @ key[j, columns]) / math.sqrt(width) for j in range(oldest, i + 1)]
                weights = np.exp(np.array(scores) - max(scores))
                weights /= weights.sum()
                for weight, j in zip(weights, range(oldest, i + 1), strict=True):
                    mixed[i, columns] += weight * value[j, columns]
        x = x + affine(mixed, f"{block}.attention.output")
        y = affine(norm(x, f"{block}.feed_forward_norm"), f"{block}.feed_forward.up")
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + affine(y, f"{block}.feed_forward.down")
    return norm(x, "final_norm") @ state["token_embedding.weight"][: config.vocabulary].T


def randomized(config: GPTConfig) -> GPT:
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.15
    return model


@pytest.mark.parametrize("band", [1, 2, 5, 19, 20, 64])
def test_banded_attention_is_a_causal_window(band: int) -> None:
    config = GPTConfig(
        vocabulary=50, context=20, layers=4, hidden=24, heads=3, attention_pattern=("dense", "banded"), band=band
    )
    model = randomized(config)
    tokens = np.random.default_rng(0).integers(50, size=20).tolist()
    expected = torch.from_numpy(brute_force(model, tokens))
    torch.testing.assert_close(model(torch.tensor([tokens]))[0].double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(model.double()(torch.tensor([tokens]))[0], expected, rtol=0, atol=1e-11)


@pytest.fixture(params=[0, 10**9], ids=["a call for each document", "a dense mask"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which documents are kept apart on a CPU, whichever is the faster at the size at hand."""
    monkeypatch.setattr(masks, "LEAST_PAIRS", request.param)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("pattern", [("dense",), ("dense", "banded")])
def test_documents_are_isolated_bit_for_bit(norm: str, pattern: tuple[str, ...]) -> None:
    config = GPTConfig(
        vocabulary=50, context=40, layers=2, hidden=32, heads=4, norm=norm, attention_pattern=pattern, band=6
    )
    model = randomized(config)
    tokens = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(0))
    ids = (torch.arange(40) >= torch.tensor([[13], [21]])).long()
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    changed[1, 20] = (changed[1, 20] + 1) % 50

    def logits(batch: torch.Tensor, mask: Mask) -> torch.Tensor:
        with torch.no_grad():
            return model(batch, mask=mask)

    before, after = (logits(batch, Mask(causal=True, document_ids=ids)) for batch in (tokens, changed))
    assert torch.equal(before[ids == 1], after[ids == 1])
    assert not torch.equal(before[0, 5:13], after[0, 5:13])
    assert torch.equal(before[0, :5], after[0, :5])
    # Without the mask the change is seen, so the equality above is the mask's doing.
    before, after = (logits(batch, Mask(causal=True)) for batch in (tokens, changed))
    assert not torch.equal(before[0, 13:], after[0, 13:])


@pytest.mark.usefixtures("kernel")
def test_a_packed_document_reads_as_it_does_alone() -> None:
    """Positions restart with the document: the second one's logits are those of the second one alone."""
    model = randomized(GPTConfig(vocabulary=50, context=40, layers=2, hidden=32, heads=4))
    tokens = torch.randint(50, (1, 40), generator=torch.Generator().manual_seed(0))
    ids = (torch.arange(40) >= 13).long()[None] + (torch.arange(40) >= 30).long()[None]
    packed = model(tokens, mask=Mask(causal=True, document_ids=ids))
    for start, end in ((0, 13), (13, 30), (30, 40)):
        torch.testing.assert_close(packed[:, start:end], model(tokens[:, start:end]), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("pattern", [("dense",), ("dense", "banded")])
def test_packed_documents_have_the_gradients_they_have_alone(pattern: tuple[str, ...]) -> None:
    config = GPTConfig(vocabulary=50, context=40, layers=2, hidden=32, heads=4, attention_pattern=pattern, band=6)
    model = randomized(config).double()
    tokens = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(0))
    cuts = [[0, 13, 30, 40], [0, 1, 39, 40]]
    ids = torch.stack([sum((torch.arange(40) >= cut).long() for cut in row) for row in cuts])

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    packed = gradients(model(tokens, mask=Mask(causal=True, document_ids=ids)).square().sum())
    documents = [tokens[None, row, start:end] for row in (0, 1) for start, end in pairwise(cuts[row])]
    alone = gradients(sum(model(document).square().sum() for document in documents))
    # A key's bias cancels in the softmax, so its gradient is rounding noise at the scale of the others.
    scale = max(float(expected.abs().max()) for expected in alone)
    for ours, expected in zip(packed, alone, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-13 * scale)


def test_initial_weights_of_gpt2() -> None:
    """Radford et al. 2019, section 2.3: residual maps scaled by 1 / sqrt(number of residual layers)."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=4096, context=256, layers=8, hidden=256, heads=4))
    deviations = {name: weight.detach().std().item() for name, weight in model.named_parameters() if weight.ndim > 1}
    for name, deviation in deviations.items():
        residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        expected = 0.02 / math.sqrt(16) if residual else 0.01 if name.startswith("position") else 0.02
        assert deviation == pytest.approx(expected, rel=0.02), name
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 8 * 8 + 1
    assert not any(parameter.any() for parameter in biases)
