"""The three architectures behind one interface: what a vector may depend on, and what it may not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.elmo.model import CONTEXTS, PRESETS, ELMo, ELMoConfig
from stemma.families.elmo.scalar_mix import ScalarMix
from stemma.families.elmo.words import spell
from stemma.families.weights import build_empty

SMALL = ELMoConfig(
    characters=4, filters=((1, 6), (3, 8)), highways=1, longest_word=12, projection=8, cell=12, layers=3, heads=2,
    feed_forward=16, bottleneck=6, kernel=3,
)  # fmt: skip
SENTENCES = ["one two three four five six", "a", "the very long word antidisestablishmentarianism", "x y"]


def model_of(architecture: str, **options: Any) -> ELMo:
    torch.manual_seed(0)
    return ELMo(replace(SMALL, architecture=architecture, **options)).eval()  # type: ignore[arg-type]


def batch_of(sentences: list[str]) -> tuple[Tensor, Tensor]:
    words = [sentence.split() for sentence in sentences]
    lengths = torch.tensor([len(one) for one in words])
    characters = torch.zeros(len(words), int(lengths.max()), SMALL.longest_word, dtype=torch.long)
    for row, one in zip(characters, words, strict=True):
        row[: len(one)] = torch.from_numpy(spell(one, SMALL.longest_word))
    return characters, lengths


@pytest.mark.parametrize("architecture", CONTEXTS)
def test_a_sentence_has_its_vectors_alone_and_in_any_batch(architecture: str) -> None:
    model = model_of(architecture)
    characters, lengths = batch_of(SENTENCES)
    layers = model(characters, lengths)
    assert layers.shape == (4, 4, 6, 16)
    for row, sentence in enumerate(SENTENCES):
        alone = model(batch_of([sentence])[0])
        torch.testing.assert_close(layers[:, row, : lengths[row]], alone[:, 0], rtol=0, atol=1e-6)
        assert not layers[:, row, lengths[row] :].any()


@pytest.mark.parametrize("architecture", CONTEXTS)
def test_each_half_sees_its_own_side_and_the_first_layer_only_the_word(architecture: str) -> None:
    """Word number 3 of 6 is changed: forward halves before it, and backward halves behind it, stay bit for bit."""
    model = model_of(architecture)
    before, after = (model(batch_of([text])[0])[:, 0] for text in ("a b c d e f", "a b c X e f"))
    changed = (before != after).view(4, 6, 2, 8).any(-1)  # [layers, words, direction]
    assert changed[0].nonzero().tolist() == [[3, 0], [3, 1]]
    assert not changed[1:, :3, 0].any() and changed[1:, 3, 0].all()
    assert not changed[1:, 4:, 1].any() and changed[1:, 3, 1].all()
    reach = {"lstm": 2, "transformer": 2, "gated-cnn": 2}[architecture]  # all of the rest; a kernel of 3 sees 2 back
    assert changed[1:, 4 : 4 + reach, 0].all() and changed[1:, 3 - reach : 3, 1].all()
    assert torch.equal(before[0, :, :8], before[0, :, 8:])


@pytest.mark.parametrize("architecture", CONTEXTS)
def test_the_directions_share_nothing_but_words_and_softmax(architecture: str) -> None:
    """Reversed weights read the reversed sentence as the others read the sentence."""
    model = model_of(architecture)
    layers = model(batch_of(["a b c d"])[0])[:, 0]
    with torch.no_grad():
        for parameter in [*model.context.parameters()]:
            if parameter.shape[0] == 2 and architecture == "lstm":
                parameter.copy_(parameter.flip(0))
    if architecture != "lstm":
        stacks = [module for module in model.context.children() if isinstance(module, torch.nn.ModuleList)]
        for stack in stacks:
            modules = list(stack)
            stack[0], stack[1] = modules[1], modules[0]
    begin, end = model.boundaries().detach()
    model.boundaries = lambda: torch.stack([end, begin])  # type: ignore[method-assign]
    mirrored = model(batch_of(["d c b a"])[0])[:, 0].flip(1)
    torch.testing.assert_close(mirrored.view(4, 4, 2, 8).flip(2).flatten(2), layers, rtol=0, atol=1e-6)


def test_only_an_lstm_hands_out_states() -> None:
    for architecture in CONTEXTS:
        model = model_of(architecture)
        words = model.words(batch_of(["a b"])[0][0]).unsqueeze(0)
        _, states = model.layers(words, torch.tensor([2]))
        assert (states is not None) == (architecture == "lstm")


def test_padding_between_characters_and_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out of the convolutions is only what cannot change the maximum."""
    model = model_of("lstm")
    characters = torch.from_numpy(spell(["a", "bcd", "efghijklmnop"], SMALL.longest_word))
    together = model.words(characters)
    for row in range(3):
        torch.testing.assert_close(model.words(characters[row : row + 1])[0], together[row], rtol=0, atol=1e-6)
    monkeypatch.setattr("stemma.families.elmo.characters.CHUNK", 2)
    torch.testing.assert_close(model.words(characters), together, rtol=0, atol=1e-6)
    embedded = model.words.embedding(characters.long()).transpose(1, 2)
    pooled = [convolution(embedded).amax(-1) for convolution in model.words.convolutions]
    whole = torch.relu(torch.cat(pooled, -1))
    for highway in model.words.highways:
        whole = highway(whole)
    torch.testing.assert_close(model.words.projection(whole), together, rtol=0, atol=1e-6)
    assert model.words(characters[:0]).shape == (0, 8)


@pytest.mark.parametrize(("preset", "millions"), [("small", 13.6), ("medium", 28.0), ("original", 93.6)])
def test_published_sizes(preset: str, millions: float) -> None:
    model = build_empty(lambda: ELMo(PRESETS[preset]))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.004)


def test_small_models_of_the_three_architectures_are_about_alike() -> None:
    names = ("tiny", "tiny-transformer", "tiny-gated-cnn")
    sizes = [sum(p.numel() for p in ELMo(PRESETS[name]).context.parameters()) for name in names]
    assert max(sizes) < 1.2 * min(sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": ((13, 4),)}, "do not fit words of 12 characters"),
        ({"filters": ()}, "do not fit words of 12 characters"),
        ({"architecture": "rnn"}, "no architecture 'rnn', expected one of lstm, transformer, gated-cnn"),
        ({"architecture": "transformer", "heads": 3}, r"projection \(8\) must be even and a multiple of heads \(3\)"),
        ({"vocabulary": 10, "predicted": 2}, "predicted is 2, expected 3"),
    ],
)
def test_configurations_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **options)


def test_weights_are_drawn_as_in_the_published_code() -> None:
    torch.manual_seed(0)
    model = ELMo(replace(SMALL, vocabulary=500, projection=64, cell=80))
    first = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.initialize()
    assert all(not torch.equal(first[n], p) or p.dim() == 1 or "bias" in n for n, p in model.named_parameters())
    assert model.output is not None and model.output.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert model.words.convolutions[0].weight.abs().max() <= 0.05 and model.words.embedding.weight.abs().max() <= 1
    assert (model.words.highways[0].gate.bias == -2).all()
    assert (model.context.layers[0].bias[:, 80:160] == 1).all()


class TestScalarMix:
    def test_it_is_the_weighted_sum(self) -> None:
        layers = torch.randn(3, 2, 4, 5)
        mix = ScalarMix(3, [0.3, -0.2, 1.0])
        with torch.no_grad():
            mix.gamma.fill_(1.7)
        shares = torch.tensor([0.3, -0.2, 1.0]).softmax(0)
        expected = 1.7 * sum(share * layer for share, layer in zip(shares, layers, strict=True))
        torch.testing.assert_close(mix(layers), expected)
        torch.testing.assert_close(ScalarMix(3)(layers), layers.mean(0))

    def test_extreme_weights_choose_a_layer(self) -> None:
        layers = torch.randn(3, 2, 4, 5)
        mix = ScalarMix(3, [-9e10, 1.0, -9e10], trainable=False)
        torch.testing.assert_close(mix(layers), layers[1])
        assert not any(parameter.requires_grad for parameter in mix.parameters())

    def test_the_norm_has_one_mean_and_variance_over_what_is_real(self) -> None:
        layers, real = torch.randn(2, 2, 4, 5), torch.tensor([[True, True, False, False], [True] * 4])
        found = ScalarMix(2, [50.0, 0.0], norm=True)(layers, real)
        seen = layers[0][real]
        expected = (layers[0] - seen.mean()) / torch.sqrt(seen.var(correction=0) + 1e-12)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
