"""The model against torch's own layers, windows against one long pass, and where dropout falls."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from stemma.errors import InputError
from stemma.families.lstm.model import LSTM, PRESETS, LSTMConfig

from .plain import SMALL, Plain, model_of

UNTIED = LSTMConfig(vocabulary=31, embedding=9, hidden=14, layers=2)
TOKENS = torch.randint(31, (4, 23), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", [SMALL, UNTIED, replace(UNTIED, layers=1)], ids=["tied", "untied", "one layer"])
def test_logits_and_gradients_are_those_of_torch(config: LSTMConfig) -> None:
    ours = model_of(config)
    theirs = Plain(ours)
    logits, expected = ours(TOKENS), theirs(TOKENS)
    assert logits.shape == (4, 23, 31)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    for one in (logits, expected):
        F.cross_entropy(one[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    pairs = [(ours.token_embedding.weight, theirs.embedding.weight), (ours.output_weight, theirs.output.weight)]
    for block, layer in zip(ours.blocks, theirs.layers, strict=True):
        pairs += list(zip(block.parameters(), layer.parameters(), strict=True))
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_windows_with_the_state_between_them_are_one_long_pass() -> None:
    model = model_of()
    whole, state = model.read(TOKENS)
    parts, carried = [], None
    for window in TOKENS.split([5, 1, 17], dim=1):
        states, carried = model.read(window, carried)
        parts.append(states)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6)
    assert carried is not None and len(carried) == 3
    for one, other in zip(sum(carried, ()), sum(state, ()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert [hidden.shape[1] for hidden, _ in carried] == [17, 17, 12]


def test_rows_forget_where_they_are_told_to() -> None:
    model = model_of()
    starts = TOKENS == 7
    assert starts.any(1).sum() > 1 and not starts.all(1).any()
    logits = model(TOKENS, starts=starts)
    for row in range(4):
        cuts = [0, *(starts[row].nonzero().flatten().tolist()), 23]
        parts = [model(TOKENS[row : row + 1, a:b]) for a, b in zip(cuts, cuts[1:], strict=False) if b > a]
        torch.testing.assert_close(logits[row : row + 1], torch.cat(parts, 1), rtol=0, atol=1e-5)


def test_dropout_of_everything_is_off_in_evaluation_and_at_zero() -> None:
    rates = {f"{name}_dropout": 0.4 for name in ("embedding", "input", "layer", "output", "weight")}
    plain, dropping = model_of(), model_of(replace(SMALL, **rates))
    torch.testing.assert_close(plain(TOKENS), Plain(plain)(TOKENS), rtol=0, atol=1e-5)  # in training mode
    assert torch.equal(dropping.eval()(TOKENS), plain(TOKENS))
    dropping.train()
    for name in rates:  # each one by itself
        alone = model_of(replace(SMALL, **{name: 0.4}))
        assert not torch.allclose(alone(TOKENS), plain(TOKENS), atol=1e-4), name


def test_input_and_output_are_dropped_by_one_mask_a_sequence() -> None:
    """A column that is dropped is so at every step, and rows differ."""
    model = model_of(replace(SMALL, output_dropout=0.5))
    dropped = model.hidden(TOKENS) == 0
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert dropped.any() and not torch.equal(dropped[0], dropped[1])
    seen = []
    model = model_of(replace(SMALL, input_dropout=0.5))
    model.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(TOKENS)
    zeros = seen[0] == 0
    assert torch.equal(zeros, zeros[:, :1].expand_as(zeros)) and zeros.any() and not zeros.all()


def test_begins_as_it_should() -> None:
    model = LSTM(SMALL)
    before = {name: value.clone() for name, value in model.named_parameters()}
    assert model.token_embedding.weight.abs().max() <= 0.1
    for block in model.blocks:
        assert block.weight_hh.abs().max() <= block.hidden**-0.5
    model.initialize()
    assert not any(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_presets_have_the_published_sizes() -> None:
    """salesforce/awd-lstm-lm prints 33,556,078 parameters, of them 33,278 of an output bias, which ours has not."""
    with torch.device("meta"):
        awd, imdb = LSTM(PRESETS["awd"]), LSTM(PRESETS["imdb"])
    count = sum(parameter.numel() for parameter in awd.parameters())
    assert count + 33_278 == 33_556_078
    assert [tuple(block.weight_ih.shape) for block in imdb.blocks] == [(4096, 512)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"tie_output": True, "embedding": 8, "hidden": 9}, r"embedding \(8\) and hidden \(9\) must be the same"),
        ({"weight_dropout": 1.0}, "weight_dropout is 1.0, expected a probability below 1"),
    ],
)
def test_senseless_sizes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LSTMConfig(**options)
