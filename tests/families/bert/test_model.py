"""The BERT model: sizes of the paper, initial weights, what a token may see, and heads computed where asked for."""

import numpy as np
import pytest
import torch

from stemma.errors import InputError
from stemma.families.bert.model import BERT, PRESETS, BERTConfig
from stemma.layers import masks
from stemma.layers.masks import Mask

# Counted by transformers 5 in BertForPreTraining and BertModel of these sizes.
PARAMETERS = {"base": (110_106_428, 109_482_240), "large": (336_226_108, 335_141_888)}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_parameters_of_the_published_sizes(preset: str) -> None:
    with torch.device("meta"):
        model = BERT(PRESETS[preset])
    heads = [*model.masked_head.parameters(), *model.next_sentence.parameters()]
    total, encoder = PARAMETERS[preset]
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    assert total - sum(parameter.numel() for parameter in heads) == encoder


def test_the_tiny_preset() -> None:
    """Embeddings (V + context + 4) d; blocks 12 d^2 + 13 d each; pooler and heads 2 (d^2 + d) + 2 d + V + 2 d + 2."""
    config = PRESETS["tiny"]
    d, v = config.hidden, config.vocabulary
    expected = (v + config.context + 4) * d + config.layers * (12 * d * d + 13 * d) + 2 * (d * d + d) + 2 * d + v
    assert sum(parameter.numel() for parameter in BERT(config).parameters()) == expected + 2 * d + 2


def test_initial_weights_are_a_truncated_normal() -> None:
    torch.manual_seed(0)
    model = BERT(BERTConfig(vocabulary=4096, context=256, layers=2, hidden=256, heads=4, tie_output=False))
    assert BERT(BERTConfig(4096, layers=1, hidden=64, heads=2, initial_std=0.05)).masked_weight.abs().max() > 0.0999
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            # A normal cut at two standard deviations has 0.8796 of the deviation.
            assert parameter.abs().max() <= 0.04, name
            slack = 0.02 if parameter.numel() > 10_000 else 0.1
            assert parameter.std().item() == pytest.approx(0.02 * 0.87962, rel=slack), name
    assert model.embeddings.token.weight.abs().max() > 0.0399


def randomized(**options: object) -> BERT:
    torch.manual_seed(0)
    small = dict(vocabulary=50, context=40, layers=2, hidden=32, heads=4)
    model = BERT(BERTConfig(**{**small, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.15
    return model


@pytest.fixture(params=[0, 10**9], ids=["a call for each document", "a dense mask"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which documents are kept apart on a CPU, whichever is the faster at the size at hand."""
    monkeypatch.setattr(masks, "LEAST_PAIRS", request.param)


def some_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


def test_every_token_sees_every_other_and_its_segment() -> None:
    model, tokens = randomized(), some_tokens(1, 12)
    before = model.hidden(tokens)
    for place in (0, 5, 11):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 50
        assert (model.hidden(changed) != before).any(-1).all()
    segments = torch.zeros_like(tokens)
    torch.testing.assert_close(model.hidden(tokens, segments), before)
    segments[0, 7:] = 1
    assert (model.hidden(tokens, segments) != before).any(-1).all()


@pytest.mark.usefixtures("kernel")
def test_texts_in_one_row_are_isolated_bit_for_bit() -> None:
    model, tokens = randomized(), some_tokens(2, 40)
    ids = (torch.arange(40) >= torch.tensor([[13], [21]])).long()
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    changed[1, 30] = (changed[1, 30] + 1) % 50
    with torch.no_grad():
        before, after = (model(batch, mask=Mask(document_ids=ids)) for batch in (tokens, changed))
        assert torch.equal(before[0, 13:], after[0, 13:]) and torch.equal(before[1, :21], after[1, :21])
        assert (before[0, :13] != after[0, :13]).any(-1).all() and (before[1, 21:] != after[1, 21:]).any(-1).all()
        # Without the mask the change is seen everywhere, so the equality above is the mask's doing.
        before, after = (model(batch) for batch in (tokens, changed))
        assert (before != after).any(-1).all()


@pytest.mark.usefixtures("kernel")
def test_texts_in_one_long_row_read_as_they_do_alone() -> None:
    """Positions restart, so that a row may be longer than the context; a text may not."""
    model = randomized().double()
    lengths = [40, 1, 17, 33, 40]
    texts = [some_tokens(1, length, seed=length) for length in lengths]
    segments = [(torch.arange(length) > length // 2).long()[None] for length in lengths]
    ids = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))[None]
    row = model(torch.cat(texts, 1), torch.cat(segments, 1), Mask(document_ids=ids))
    alone = torch.cat([model(text, segment) for text, segment in zip(texts, segments, strict=True)], 1)
    torch.testing.assert_close(row, alone, rtol=0, atol=1e-10)

    weights = torch.randn(row.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    packed, single = (torch.autograd.grad((x * weights).sum(), list(model.blocks.parameters())) for x in (row, alone))
    scale = max(float(gradient.abs().max()) for gradient in single)
    for ours, expected in zip(packed, single, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12 * scale)

    for tokens, mask in (
        (some_tokens(1, 41), None),
        (some_tokens(1, 60), Mask(document_ids=torch.tensor([[0] * 41 + [1] * 19]))),
    ):
        with pytest.raises(InputError, match="at most 40 tokens at once, got 41"):
            model(tokens, mask=mask)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    """Not even in a row that is padding altogether."""
    model = randomized()
    text = some_tokens(1, 9)
    alone = model(text)
    padding = some_tokens(1, 5, seed=1)
    real = torch.ones(2, 14, dtype=torch.bool)
    real[0, slice(5) if side == "left" else slice(9, None)] = False
    real[1] = False
    row = torch.cat([padding, text] if side == "left" else [text, padding], 1)
    logits = model(torch.cat([row, some_tokens(1, 14, seed=2)]), mask=Mask(key_padding=real))
    torch.testing.assert_close(logits[0][real[0]], alone[0], rtol=0, atol=1e-5)
    assert logits.isfinite().all()


def test_heads_are_computed_where_they_are_asked_for() -> None:
    model, tokens = randomized(), some_tokens(3, 20)
    segments = (torch.arange(20) > 8).long().expand(3, 20)
    whole = model(tokens, segments)
    assert whole.shape == (3, 20, 50)
    hidden = model.hidden(tokens, segments)
    places = torch.tensor([0, 7, 23, 59])
    torch.testing.assert_close(model.logits(hidden.flatten(0, 1)[places]), whole.flatten(0, 1)[places])
    states = model.hidden_states(tokens, segments)
    assert len(states) == 3 and torch.equal(states[-1], hidden)
    pooled = model.pool(hidden[:, 0])
    expected = np.tanh((hidden[:, 0] @ model.pooler.dense.weight.T + model.pooler.dense.bias).detach().numpy())
    np.testing.assert_allclose(pooled.detach().numpy(), expected, atol=1e-6)
    assert model.next_sentence(pooled).shape == (3, 2)


def test_dropout_is_where_the_config_says() -> None:
    for option in ("dropout", "attention_dropout"):
        model = randomized(**{"dropout": 0.0, "attention_dropout": 0.0, option: 0.5}).train()
        tokens = some_tokens(1, 12)
        assert not torch.equal(model(tokens), model(tokens))
        assert torch.equal(model.eval()(tokens), model(tokens))
    model = randomized(dropout=0.0, attention_dropout=0.0).train()
    assert torch.equal(model(tokens), model(tokens))


def test_a_width_that_the_heads_do_not_divide() -> None:
    with pytest.raises(InputError, match=r"hidden \(30\) must be a multiple of heads \(4\)"):
        BERTConfig(hidden=30, heads=4)


def test_states_of_some_places_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    model = BERT(BERTConfig(50, context=8, layers=2, hidden=16, heads=2, dropout=0.0, attention_dropout=0.0))
    tokens, places = torch.randint(50, (3, 8)), torch.tensor([0, 5, 9, 23])
    mask = Mask(key_padding=torch.arange(8) < torch.tensor([[8], [6], [8]]))
    gradients = []
    for states in (
        model.hidden(tokens, mask=mask).flatten(0, 1)[places],
        model.hidden(tokens, mask=mask, places=places),
    ):
        gradients.append([states, *torch.autograd.grad(states.square().sum(), [*model.blocks.parameters()])])
    for whole, some in zip(*gradients, strict=True):
        torch.testing.assert_close(some, whole, atol=1e-5, rtol=1e-5)
