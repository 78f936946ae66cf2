"""Scores of continuations whose contexts are read once: those of each text read alone."""

import pytest
import torch

from stemma.errors import InputError
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.inference.scoring import encode_pairs, score_continuations


def alone(model, context, continuation):
    rows = model(torch.tensor([[*context, *continuation]]))[0].log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    values = [rows[place, token].item() for place, token in zip(places, continuation, strict=True)]
    return values, all(rows[place].argmax() == token for place, token in zip(places, continuation, strict=True))


def trees(vocabulary):
    """Contexts with a common beginning, short and long; some continuations are there twice, and the likeliest is."""
    numbers = torch.Generator().manual_seed(1)
    shared = torch.randint(vocabulary, (21,), generator=numbers).tolist()
    pairs = []
    for length in (1, 2, 5, 17, 30):
        context = [*shared, *torch.randint(vocabulary, (length,), generator=numbers).tolist()]
        for size in (1, 2, 4, 10):
            pairs.append((tuple(context), tuple(torch.randint(vocabulary, (size,), generator=numbers).tolist())))
    return [*pairs, pairs[3], pairs[0], ((7,), (3, 4))]


def check(model, pairs):
    pairs = [*pairs, (pairs[0][0], (model(torch.tensor([pairs[0][0]]))[0, -1].argmax().item(),))]
    found = score_continuations(model, pairs, memory=2**20)
    assert len(found) == len(pairs)
    for (context, continuation), one in zip(pairs, found, strict=True):
        values, greedy = alone(model, context, continuation)
        assert one.log_probabilities == pytest.approx(values, abs=2e-5)
        assert one.is_greedy == greedy
    assert found[-1].is_greedy


@torch.inference_mode()
def test_branches_are_scored_as_whole_texts(make_model):
    model = make_model(scale=1.0)
    pairs = trees(320)
    check(model, pairs)
    check(model, pairs[:-1])  # all contexts begin alike


@torch.inference_mode()
def test_windows_and_grouped_queries():
    torch.manual_seed(0)
    config = MistralConfig(
        vocabulary=90, context=64, layers=2, hidden=32, heads=4, key_value_heads=2, windows=(16,), feed_forward=64
    )
    check(Mistral(config).eval(), trees(90)[:-1])


@torch.inference_mode()
def test_of_what_is_too_long_the_end_is_read(make_model):
    model = make_model(scale=1.0)
    long = tuple(range(100))
    (found,) = score_continuations(model, [(long, (5, 6, 7))])
    assert found.log_probabilities == pytest.approx(alone(model, long[-62:], (5, 6))[0] + [
        model(torch.tensor([[*long[-62:], 5, 6]]))[0, -1].log_softmax(-1)[7].item()
    ], abs=2e-5)  # fmt: skip
    with pytest.raises(InputError, match="65 tokens, the model's context is 64"):
        score_continuations(model, [((1,), tuple(range(65)))])
    assert score_continuations(model, []) == []


def test_pairs_are_divided_where_the_context_ends(tokenizer):
    plain, blank, empty, merged = encode_pairs(
        tokenizer, [("the lazy", " dog"), ("the lazy ", "dog"), ("", "dog"), ("the la", "zy dog")]
    )
    assert tokenizer.decode(plain.continuation) == " dog" and plain == blank and not plain.merged
    assert empty.context == (tokenizer.separator,) and tokenizer.decode(empty.continuation) == "dog"
    assert merged.merged
    with pytest.raises(InputError, match="has no tokens of its own"):
        encode_pairs(tokenizer, [("the lazy", "")])
