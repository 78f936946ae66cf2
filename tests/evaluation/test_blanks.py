"""What each family makes of a blank, against one sequence at a time, against transformers, and against sums to 1."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from stemma import families
from stemma.errors import InputError
from stemma.evaluation.blanks import Blank, way_of
from stemma.families.glm.tokens import GLMTokens
from stemma.inference.filling_scores import score_fillings

from .letters import (
    CLS,
    END,
    FAMILIES,
    FIRST,
    LETTERS,
    MASK,
    PAD,
    SECOND,
    SEP,
    VOCABULARY,
    end_of,
    letters,
    next_token,
    raise_the_end,
    random_model,
    scores_of,
)

BY_DESIGN = ("t5", "glm")


def some_blanks(count: int, seed: int = 0) -> list[Blank]:
    """Texts and pieces of different lengths, in no order."""
    rng = np.random.default_rng(seed)

    def draw(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.choice(LETTERS, rng.integers(least, most + 1)).tolist())

    return [Blank(draw(0, 9), draw(1, 4), draw(0, 9)) for _ in range(count)]


EDGES = [
    Blank((), (5,), ()),
    Blank((), (6, 7), (5, 5)),
    Blank((5, 6), (7, 7, 7, 7, 7, 7), ()),
    Blank((8,) * 15, (5,), (6,) * 15),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_one_sequence_at_a_time(family: str) -> None:
    model, blanks = random_model(family), [*some_blanks(80), *EDGES]  # more than one batch
    found = way_of(model, letters()).log_probabilities(blanks)
    assert len(found) == len(blanks)
    for blank, scores in zip(blanks, found, strict=True):
        assert scores.dtype == np.float64
        assert scores == pytest.approx(scores_of(model, family, blank).tolist(), abs=2e-5)
    assert np.concatenate(found).std() > 0.5  # a model that finds all equally likely would tell little


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_does_not_depend_on_the_batch(family: str) -> None:
    way, blanks = way_of(random_model(family, seed=1), letters()), [*some_blanks(12, seed=1), *EDGES]
    together, choices, written = way.log_probabilities(blanks * 5), way.choice(blanks * 5), way.write(blanks * 5)
    for i, blank in enumerate(blanks * 5):
        assert together[i] == pytest.approx(together[i % len(blanks)], abs=1e-5)
        if i < len(blanks):
            assert together[i] == pytest.approx(way.log_probabilities([blank])[0], abs=1e-5)
            assert choices[i] == pytest.approx(way.choice([blank])[0], abs=1e-4)
            assert written[i] == way.write([blank])[0]
    assert written == written[: len(blanks)] * 5


def test_glm_scores_are_those_of_score_fillings() -> None:
    model, blanks = random_model("glm", seed=2), [*some_blanks(20, seed=2), Blank((5, 6), (), (7,))]
    contexts = [[CLS, *blank.before, MASK, *blank.after, PAD] for blank in blanks]
    expected = score_fillings(model, GLMTokens.of(letters()), contexts, [[blank.piece] for blank in blanks])
    found = way_of(model, letters()).log_probabilities(blanks)
    assert [scores.sum() for scores in found] == pytest.approx([total for (total,) in expected], abs=1e-4)


@torch.no_grad()
def test_t5_scores_are_those_of_transformers(tmp_path: Path) -> None:
    model, blanks = random_model("t5", seed=3), some_blanks(12, seed=3)
    families.save(model, letters(), tmp_path)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    for blank, scores in zip(blanks, way_of(model, letters()).log_probabilities(blanks), strict=True):
        source = torch.tensor([[*blank.before, FIRST, *blank.after, SEP]])
        target = torch.tensor([[FIRST, *blank.piece, SECOND]])
        logits = theirs(input_ids=source, labels=target).logits[0].double().log_softmax(-1)
        expected = logits[torch.arange(target.shape[1]), target[0]][1:]  # not of the sentinel that names the blank
        assert scores == pytest.approx(expected.tolist(), abs=2e-5)


@torch.no_grad()
def test_gpt_scores_are_those_of_transformers(tmp_path: Path) -> None:
    model, blanks = random_model("gpt", seed=3), some_blanks(12, seed=3)
    families.save(model, letters(), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    way = way_of(model, letters())
    for blank, scores, choice in zip(blanks, way.log_probabilities(blanks), way.choice(blanks), strict=True):
        text = torch.tensor([[SEP, *blank.before, *blank.piece, *blank.after]])
        logits = theirs(input_ids=text).logits[0, :-1].double().log_softmax(-1)
        by_token = logits[torch.arange(text.shape[1] - 1), text[0, 1:]][len(blank.before) :]
        assert scores == pytest.approx(by_token[: len(blank.piece)].tolist(), abs=2e-5)
        assert choice == pytest.approx(by_token.sum().item(), abs=1e-4)


@pytest.mark.parametrize("family", BY_DESIGN)
def test_the_probabilities_of_all_pieces_sum_to_one(family: str) -> None:
    """Each piece of no or one token ends; what is left is shared by the beginnings of two tokens."""
    model, end = raise_the_end(random_model(family, seed=2), family), end_of(family)[0]
    tokens = [token for token in range(VOCABULARY) if token != end]
    pieces = [(), *product(tokens, repeat=1), *product(tokens, repeat=2)]
    blank = Blank((5, 6, 7), (), (8, 5))
    found = way_of(model, letters()).log_probabilities([blank.holding(piece) for piece in pieces])
    ended = sum(math.exp(scores.sum()) for piece, scores in zip(pieces, found, strict=True) if len(piece) < 2)
    longer = sum(math.exp(scores[:2].sum()) for piece, scores in zip(pieces, found, strict=True) if len(piece) == 2)
    assert 0.01 < ended < 1 and ended + longer == pytest.approx(1, abs=1e-5)
    complete = sum(math.exp(scores.sum()) for scores in found)
    assert ended < complete <= 1


@pytest.mark.parametrize("family", ["gpt", "bert", "unilm"])
def test_the_probabilities_of_pieces_of_a_length_sum_to_one(family: str) -> None:
    blank = Blank((5, 6, 7), (), (8, 5))
    pieces = [blank.holding(piece) for piece in product(range(VOCABULARY), repeat=2)]
    found = way_of(random_model(family, seed=4), letters()).log_probabilities(pieces)
    assert sum(math.exp(scores.sum()) for scores in found) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_way_says_of_itself(family: str) -> None:
    way, blank = way_of(random_model(family), letters()), Blank((5,), (6, 7, 8), (5,))
    assert way.ends == way.by_design == (family in BY_DESIGN)
    assert bool(way.note) == (not way.by_design)
    assert ("bidirectional" in way.note) == (family == "unilm")
    assert len(way.log_probabilities([blank])[0]) == 3 + way.ends


def expected_choice(model: Any, family: str, blank: Blank) -> float:
    if family == "gpt":  # the piece, and what follows if it stands there
        blank = Blank(blank.before, (*blank.piece, *blank.after), ())
    return scores_of(model, family, blank).sum().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_choice_is_that_of_all_probabilities_computed(family: str) -> None:
    model, rng = random_model(family, seed=5), np.random.default_rng(5)
    way, picked = way_of(model, letters()), set()
    for blank in some_blanks(10, seed=5):
        options = [blank, *(blank.holding(rng.choice(LETTERS, len(blank.piece)).tolist()) for _ in range(3))]
        found = way.choice(options)
        expected = [expected_choice(model, family, option) for option in options]
        assert found == pytest.approx(expected, abs=1e-4)
        picked.add(int(np.argmax(expected)))
        assert int(np.argmax(found)) == int(np.argmax(expected))
    assert len(picked) > 1


PLANTED = [
    Blank((5, 6), (7, 8), (9, 10)),
    Blank((6, 5), (10, 9), (8, 7)),
    Blank((7, 7, 8), (6,), (5, 12, 12)),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_knows_the_pieces_by_heart_chooses_and_writes_them(family: str) -> None:
    model = random_model(family, seed=6, std=0.1, layers=1).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(50):
        blanks = [Blank(b.before, (*b.piece, *b.after), ()) for b in PLANTED] if family == "gpt" else PLANTED
        loss = -torch.cat([scores_of(model, family, blank) for blank in blanks]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    way = way_of(model.eval(), letters())
    assert way.write(PLANTED) == [list(blank.piece) for blank in PLANTED]
    for blank in PLANTED:
        size = len(blank.piece)
        others = [blank.holding(other.piece[:1] * size) for other in PLANTED if other.piece[:1] * size != blank.piece]
        values = way.choice([*others, blank])
        assert int(np.argmax(values)) == len(others)


def naive_writing(model: Any, family: str, blank: Blank, most: int) -> list[int]:
    """The likeliest token each time, everything computed anew."""
    ends = {"glm": (END,), "t5": (SECOND, SEP)}.get(family, ())
    limit = most if family in BY_DESIGN else len(blank.piece)
    written: list[int] = []
    while len(written) < limit:
        token = int(next_token(model, family, blank, written).argmax())
        if token in ends:
            break
        written.append(token)
    return written


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_writing_is_a_greedy_loop_without_a_cache(family: str) -> None:
    sizes = set()
    for seed in (2, 7):
        model = random_model(family, seed=seed)
        if family in BY_DESIGN:
            raise_the_end(model, family)
        blanks = [*some_blanks(66 if seed == 2 else 20, seed=seed), *EDGES]  # at first more than one batch
        found = way_of(model, letters(), most=5).write(blanks)
        expected = [naive_writing(model, family, blank, 5) for blank in blanks]
        assert found == expected
        sizes |= set(map(len, found))
    if family in BY_DESIGN:
        assert {0, 5} < sizes  # ended at once, cut at the limit, and between
    else:
        assert sizes == {1, 2, 3, 4, 6}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_piece_of_no_tokens(family: str) -> None:
    """Families that say where a piece ends give its end's probability; the others write nothing."""
    model, blanks = random_model(family), [Blank((5, 6), (), (7,)), Blank((5, 6), (8,), (7,))]
    way = way_of(model, letters())
    assert [len(scores) for scores in way.log_probabilities(blanks)] == [int(way.ends), 1 + way.ends]
    if not way.ends:
        assert [len(piece) for piece in way.write(blanks)] == [0, 1]
        assert [len(piece) for piece in way.write(blanks[:1])] == [0]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_blanks(family: str) -> None:
    way = way_of(random_model(family), letters())
    assert way.log_probabilities([]) == way.choice([]) == way.write([]) == []


def test_a_stranger_knows_no_blanks() -> None:
    with pytest.raises(InputError, match="a Linear knows no blanks: expected a GLM, T5, GPT, Mistral or BERT"):
        way_of(torch.nn.Linear(2, 2), letters())
