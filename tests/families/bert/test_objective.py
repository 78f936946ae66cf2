"""Masked language modelling: how many tokens, which and by what; batches; and a loss that does not depend on them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from stemma.errors import InputError
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.objective import Example, MaskedLanguageModel, choose_masked, corrupt
from stemma.families.bert.passages import FullSentences, Passage, SentencePairs
from stemma.families.bert.tokens import BERTTokens

from .corpora import CLS, FIRST, MASK, SEP, unique_tokens

VOCABULARY = 61
TOKENS = BERTTokens(CLS, SEP, MASK, SEP, ["", "", "", *[" word"] * (VOCABULARY - FIRST)])
OBJECTIVE = MaskedLanguageModel(TOKENS)


def passage(a: int, b: int | None = None, seed: int = 0) -> Passage:
    """A passage of A and B of so many random tokens."""
    rng = np.random.default_rng([seed, a])
    texts = [rng.integers(FIRST, VOCABULARY, size=size) for size in (a, b) if size is not None]
    return Passage.of(TOKENS, *texts, is_random=None if b is None else bool(rng.integers(2)))


# Which tokens


@pytest.mark.parametrize(
    ("length", "expected"),
    # 0.15 * length, half to even: 1.5 -> 2, 4.5 -> 4, 7.5 -> 8, 10.5 -> 10; 128 and 512 as in the published settings.
    [(3, 1), (7, 1), (9, 1), (10, 2), (30, 4), (50, 8), (70, 10), (128, 19), (512, 77)],
)
def test_a_fixed_share_of_the_whole_sequence_is_predicted(length: int, expected: int) -> None:
    """Special tokens count in the share; the number is exact, not drawn token by token."""
    for seed in range(5):
        example = OBJECTIVE.example(passage(length - 2), np.random.default_rng(seed))
        assert len(example["tokens"]) == length and len(example["places"]) == len(example["targets"]) == expected
    capped = replace(OBJECTIVE, most_masked=5).example(passage(length - 2), np.random.default_rng(0))
    assert len(capped["places"]) == min(5, expected)
    everything = replace(OBJECTIVE, masked=1.0).example(passage(length - 2), np.random.default_rng(0))
    assert everything["places"].tolist() == list(range(1, length - 1))


def test_targets_are_the_original_tokens_and_the_rest_stays() -> None:
    original = passage(20, 30)
    example = OBJECTIVE.example(original, np.random.default_rng(0))
    assert (example["targets"] == original.tokens[example["places"]]).all()
    others = np.setdiff1d(np.arange(53), example["places"])
    assert (example["tokens"][others] == original.tokens[others]).all()
    assert (example["segments"] == original.segments).all() and example["segments"].sum() == 31
    assert original.tokens.max() < VOCABULARY and MASK not in original.tokens  # not written to


def test_which_tokens_and_what_becomes_of_them() -> None:
    """80 % [MASK], 10 % any id of the vocabulary, 10 % as they were; all places alike, but never [CLS] and [SEP]."""
    original = passage(40, 57)
    places, fates, randoms = Counter(), Counter(), Counter()
    rounds = 4000
    for seed in range(rounds):
        example = OBJECTIVE.example(original, np.random.default_rng([7, seed]))
        places.update(example["places"].tolist())
        for now, before in zip(example["tokens"][example["places"]], example["targets"], strict=True):
            fates["mask" if now == MASK else "same" if now == before else "random"] += 1
            randoms[int(now)] += now not in (MASK, before)
    assert set(range(100)) - set(places) == {0, 41, 99}
    drawn = sum(places.values())
    assert drawn == 15 * rounds
    assert stats.chisquare(list(places.values())).pvalue > 1e-3
    # A random id is [MASK] or the token itself once in 61 times each.
    expected = {"mask": 0.8 + 0.1 / 61, "same": 0.1 + 0.1 / 61, "random": 0.1 * 59 / 61}
    for fate, share in expected.items():
        assert stats.binomtest(fates[fate], drawn, share).pvalue > 1e-3, fate
    assert {CLS, SEP} < {index for index, count in randoms.items() if count}
    assert stats.chisquare([randoms[index] for index in (CLS, SEP, *range(FIRST, VOCABULARY))]).pvalue > 1e-3


def test_shares_are_options() -> None:
    tokens, places = np.arange(100, 1100), np.arange(0, 1000, 2)
    all_masked = corrupt(tokens, places, np.random.default_rng(0), mask=2, vocabulary=50, replaced=1.0, randomized=0.0)
    assert (all_masked[places] == 2).all() and (all_masked[1::2] == tokens[1::2]).all() and tokens[0] == 100
    same = corrupt(tokens, places, np.random.default_rng(0), mask=2, vocabulary=50, replaced=0.0, randomized=0.0)
    assert (same == tokens).all()
    random = corrupt(tokens, places, np.random.default_rng(0), mask=2, vocabulary=50, replaced=0.0, randomized=1.0)
    assert set(random[places].tolist()) == set(range(50))


def test_shares_that_are_none() -> None:
    with pytest.raises(InputError, match=r"objective\.masked: 15 is no share"):
        replace(OBJECTIVE, masked=15)
    with pytest.raises(InputError, match=r"replaced \(0\.8\) and randomized \(0\.3\) exceed 1"):
        replace(OBJECTIVE, randomized=0.3)


def whole_words_by_the_book(words: np.ndarray, count: int, order: list[int]) -> list[int]:
    """create_masked_lm_predictions: a candidate that would exceed the number is skipped."""
    chosen: list[int] = []
    for word in order:
        members = np.flatnonzero(words == word).tolist()
        if len(chosen) >= count:
            break
        if len(chosen) + len(members) <= count:
            chosen += members
    return sorted(chosen)


def test_words_are_masked_whole() -> None:
    words = np.array([-1, 1, 1, 2, 3, 3, 3, 4, -1, 5, 6, 6, 7, 7, 7, 7, -1])
    numbers = np.arange(1, 8)
    reached = set()
    for seed in range(200):
        for count in (1, 2, 3, 5, 14, 20):
            order = numbers[np.random.default_rng(seed).permutation(7)].tolist()
            chosen = choose_masked(words, count, np.random.default_rng(seed)).tolist()
            assert chosen == whole_words_by_the_book(words, count, order)
            reached.add((count, len(chosen)))
    assert {(1, 1), (2, 2), (14, 14), (20, 14)} <= reached
    # What does not fit is left out, so that fewer may be masked than asked for.
    assert len(choose_masked(np.array([1, 1, 2, 2, -1]), 3, np.random.default_rng(0))) == 2
    assert choose_masked(np.array([-1, 1, 1, 1, -1]), 2, np.random.default_rng(0)).tolist() == []


def test_whole_words_of_wordpieces_do_not_cross_special_tokens() -> None:
    tokens = BERTTokens(CLS, SEP, MASK, SEP, ["", "", "", "un", "##believ", "##able", "the"], wordpiece=True)
    objective = MaskedLanguageModel(tokens, whole_words=True, masked=0.4, replaced=1.0, randomized=0.0)
    # B begins inside a word, as after truncation at its front.
    text = Passage.of(tokens, np.array([3, 4, 5, 6, 6, 6]), np.array([4, 5, 6, 3, 4]))
    groups = [{1, 2, 3}, {4}, {5}, {6}, {8, 9}, {10}, {11, 12}]
    seen = set()
    for seed in range(200):
        places = set(objective.example(text, np.random.default_rng(seed))["places"].tolist())
        assert 0 < len(places) <= 6 and all(group <= places or not group & places for group in groups)
        seen |= {index for index, group in enumerate(groups) if group <= places}
    assert seen == set(range(7))


def test_masks_are_drawn_anew_for_each_sample() -> None:
    first, second = (OBJECTIVE.example(passage(60), np.random.default_rng([1, index])) for index in (0, 1))
    again = OBJECTIVE.example(passage(60), np.random.default_rng([1, 0]))
    assert (first["tokens"] == again["tokens"]).all() and (first["places"] == again["places"]).all()
    assert first["places"].tolist() != second["places"].tolist()


# Batches


def examples(sizes: list[tuple[int, int | None]]) -> list[Example]:
    return [
        OBJECTIVE.example(passage(*size, seed=index), np.random.default_rng(index)) for index, size in enumerate(sizes)
    ]


def test_short_examples_share_rows() -> None:
    made = examples([(30, 31), (5, 4), (20, None), (11, 30), (61, None), (3, 3)])
    batch = OBJECTIVE.collate(made)
    lengths = [len(example["tokens"]) for example in made]
    assert lengths == [64, 12, 22, 44, 63, 9]
    assert batch["tokens"].shape == batch["segments"].shape == batch["document_ids"].shape == (4, 64)
    assert (batch["document_ids"] == -1).sum() == 4 * 64 - sum(lengths)
    ids = batch["document_ids"].flatten()
    for number, example in enumerate(made):
        here = ids == number
        assert (batch["tokens"].flatten()[here].numpy() == example["tokens"]).all()
        assert (batch["segments"].flatten()[here].numpy() == example["segments"]).all()
        assert (here.nonzero().diff(dim=0) == 1).all()
        inside = here[batch["places"]]
        assert (batch["places"][inside].numpy() == example["places"] + int(here.nonzero()[0])).all()
        assert (batch["targets"][inside].numpy() == example["targets"]).all()
    assert len(batch["places"]) == sum(len(example["places"]) for example in made)
    assert batch["tokens"].flatten()[batch["firsts"]].tolist() == [CLS] * 4
    assert ids[batch["firsts"]].tolist() == [0, 1, 3, 5]
    assert batch["is_random"].tolist() == [int(made[index]["is_random"][0]) for index in (0, 1, 3, 5)]
    assert OBJECTIVE.counts(batch) == {"targets": len(batch["targets"]), "pairs": 4}


def test_full_rows_need_no_document_ids() -> None:
    assert "document_ids" not in OBJECTIVE.collate(examples([(30, 31), (20, 41)]))
    assert "document_ids" in OBJECTIVE.collate(examples([(30, 31), (20, 40)]))
    assert "document_ids" in OBJECTIVE.collate(examples([(30, 31), (13, 16), (13, 16)]))


def test_documents_inside_an_example_stay_apart() -> None:
    parts = [passage(5).tokens, passage(7).tokens, passage(2).tokens]
    joined = Passage(np.concatenate(parts), np.zeros(20, int), starts=(0, 7, 16))
    objective = replace(OBJECTIVE, examples="full_sentences", separate_documents=True)
    batch = objective.collate([objective.example(joined, np.random.default_rng(0))] * 2)
    assert batch["document_ids"].tolist() == [
        [0] * 7 + [1] * 9 + [2] * 4 + [-1] * 4,
        [3] * 7 + [4] * 9 + [5] * 4 + [-1] * 4,
    ]
    assert objective.counts(batch) == {"targets": 6} and len(batch["firsts"]) == 0


# Loss


def small_model(seed: int = 0) -> BERT:
    torch.manual_seed(seed)
    model = BERT(BERTConfig(VOCABULARY, context=64, layers=2, hidden=24, heads=3, dropout=0.0, attention_dropout=0.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.double()


SIZES: list[tuple[int, int | None]] = [(30, 31), (5, 4), (20, 6), (11, 30), (2, 1), (3, 3), (29, 32)]


def gradients(model: BERT) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


def test_the_loss_is_the_sum_of_two_means() -> None:
    """Computed one example at a time, by the whole logits."""
    model, made = small_model(), examples(SIZES)
    token_losses, pair_losses, right = [], [], 0
    for example in made:
        tokens, segments = (torch.from_numpy(example[name])[None] for name in ("tokens", "segments"))
        logits = model(tokens, segments)[0]
        token_losses.append(
            F.cross_entropy(logits[example["places"]], torch.from_numpy(example["targets"]), reduction="none")
        )
        first = model.hidden(tokens, segments)[:, 0]
        pair_logits = model.next_sentence(model.pool(first))
        pair_losses.append(F.cross_entropy(pair_logits, torch.from_numpy(example["is_random"])))
        right += int(pair_logits.argmax() == example["is_random"][0])
    expected = torch.cat(token_losses).mean() + torch.stack(pair_losses).mean()
    expected.backward()
    expected_gradients = gradients(model)

    batch = OBJECTIVE.collate(made)
    loss, sums = OBJECTIVE.loss(model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients(model), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()) + 1e-9)
    assert float(sums["nll"]) == pytest.approx(torch.cat(token_losses).sum().item(), rel=1e-6)
    assert (sums["targets"], sums["pairs"]) == (len(batch["targets"]), len(SIZES))
    assert float(sums["next_sentence_loss/pairs"]) == pytest.approx(torch.stack(pair_losses).sum().item(), rel=1e-6)
    assert int(sums["next_sentence_accuracy/pairs"]) == right


@pytest.mark.parametrize("cuts", [[7], [1, 6], [3, 2, 2], [1] * 7])
def test_micro_batches_add_up_to_the_batch(cuts: list[int]) -> None:
    model, made = small_model(), examples(SIZES)
    loss, _ = OBJECTIVE.loss(model, OBJECTIVE.collate(made))
    loss.backward()
    expected = gradients(model)
    bounds = np.cumsum([0, *cuts])
    parts = [OBJECTIVE.collate(made[start:stop]) for start, stop in zip(bounds, bounds[1:], strict=False)]
    totals = {name: sum(OBJECTIVE.counts(part)[name] for part in parts) for name in ("targets", "pairs")}
    total = 0.0
    for part in parts:
        share, _ = OBJECTIVE.loss(model, part, totals)
        share.backward()
        total += share.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    for ours, whole in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-6 * float(whole.abs().max()) + 1e-9)


def test_without_pairs_the_loss_is_that_of_the_masked_tokens() -> None:
    objective = replace(OBJECTIVE, examples="full_sentences")
    model, made = small_model(), [objective.example(passage(size), np.random.default_rng(size)) for size in (30, 12)]
    batch = objective.collate(made)
    loss, sums = objective.loss(model, batch)
    assert loss.item() == pytest.approx(float(sums["nll"]) / len(batch["targets"])) and set(sums) == {"nll", "targets"}
    loss.backward()
    assert model.pooler.dense.weight.grad is None and model.masked_head.bias.grad is not None


# Data


def test_the_objective_says_what_it_reads(make_split: Callable) -> None:
    documents, tokens = unique_tokens([[6] * 30, [4] * 50])
    split = make_split(documents)
    pairs = MaskedLanguageModel(tokens, short=0.5).sequences(split, 64, 3, 8)
    assert isinstance(pairs, SentencePairs) and pairs.short == 0.5
    full = MaskedLanguageModel(tokens, examples="full_sentences", separate_documents=True).sequences(split, 64, 3, 8)
    assert isinstance(full, FullSentences) and full.separate
    assert not MaskedLanguageModel.likelihood


@pytest.mark.parametrize("kind", ["pairs", "full_sentences"])
def test_held_out_batches_are_always_the_same(kind: str, make_split: Callable) -> None:
    rng = np.random.default_rng(0)
    documents, tokens = unique_tokens([rng.integers(1, 12, size=rng.integers(1, 30)).tolist() for _ in range(30)])
    objective = MaskedLanguageModel(tokens, examples=kind)
    split = make_split(documents)
    batches, again = list(objective.held_out(split, 64, 4)), list(objective.held_out(split, 64, 4))
    seen: Counter = Counter()
    for one, other in zip(batches, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert one["tokens"].shape[1] <= 64 and len(one["tokens"]) <= 5 and len(one["is_random"]) == 0
        restored = one["tokens"].flatten()
        restored[one["places"]] = one["targets"]
        seen.update(restored.tolist())
    assert all(seen[token] == 1 for document in documents for token in document)
    targets = sum(objective.counts(batch)["targets"] for batch in batches)
    assert 0.14 < targets / sum(map(len, documents)) < 0.2  # the special tokens of short passages count too
    loss, sums = objective.loss(BERT(BERTConfig(tokens.vocabulary, 64, layers=1, hidden=8, heads=2)), batches[0])
    assert set(sums) == {"nll", "targets"} and loss.isfinite()
