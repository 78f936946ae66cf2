"""How likely each family finds texts, against its own logits one prefix at a time, and against sums over all texts."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.evaluation.left_to_right import likelihood_of
from stemma.families.bert.pseudo_likelihood import pseudo_log_likelihood
from stemma.families.bert.tokens import BERTTokens
from stemma.families.glm.likelihood import LeftToRight
from stemma.families.glm.tokens import GLMTokens
from stemma.inference.masked_decoding import score_left_to_right
from stemma.layers.masks import Mask

from .letters import (
    CLS,
    CONTEXT,
    DOCUMENT_MASK,
    FAMILIES,
    FIRST,
    LETTERS,
    MASK,
    SEP,
    START,
    VOCABULARY,
    letters,
    random_model,
)

EXACT = ("gpt", "lstm", "unilm", "t5", "glm")


def some_texts(count: int, seed: int = 0) -> list[list[int]]:
    """Texts of 1 to 30 tokens, in no order."""
    rng = np.random.default_rng(seed)
    return [rng.choice(LETTERS, size).tolist() for size in rng.integers(1, 31, count)]


@torch.no_grad()
def next_token(model: Any, family: str, text: list[int], place: int) -> Tensor:
    """Log-probabilities, float64 [vocabulary], of the token at a place of a text given those before it (of a BERT: and
    those after it)."""
    before = text[:place]
    if family in ("gpt", "lstm"):
        logits = model(torch.tensor([[SEP, *before]]))[0, -1]
    elif family == "unilm":
        tokens = torch.tensor([[CLS, *before, MASK]])
        logits = model(tokens, torch.full_like(tokens, 2), Mask(causal=True))[0, -1]
    elif family == "t5":
        read = torch.tensor([[model.config.start, FIRST, *before]])
        logits = model.logits(model.decode(read, model.encode(torch.tensor([[FIRST, SEP]]))))[0, -1]
    elif family == "glm":
        positions = [[0, 1, *[1] * (place + 1)], [0, 0, *range(1, place + 2)]]  # of [CLS] [gMASK] | start, text
        mask = Mask(causal=True, prefix_lengths=torch.tensor([2]))
        logits = model(torch.tensor([[CLS, DOCUMENT_MASK, START, *before]]), torch.tensor([positions]), mask)[0, -1]
    else:
        logits = model(torch.tensor([[CLS, *before, MASK, *text[place + 1 :], SEP]]))[0, place + 1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("family", EXACT)
def test_each_token_is_scored_by_what_is_before_it(family: str) -> None:
    model, texts = random_model(family), some_texts(36)  # more than one batch
    found = likelihood_of(model, letters()).log_probabilities(texts)
    for text, scores in zip(texts, found, strict=True):
        expected = [next_token(model, family, text, place)[token].item() for place, token in enumerate(text)]
        assert scores.dtype == np.float64 and scores == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("family", EXACT)
def test_the_probabilities_of_all_texts_of_two_tokens_sum_to_one(family: str) -> None:
    texts = list(product(range(VOCABULARY), repeat=2))
    likelihood = likelihood_of(random_model(family, seed=1), letters())
    assert likelihood.exact
    found = likelihood.log_probabilities(texts)
    assert sum(math.exp(scores.sum()) for scores in found) == pytest.approx(1, abs=1e-5)
    best = max(found, key=lambda scores: scores.sum()).sum()
    assert math.exp(best) > 4 / len(texts)  # not all equally likely


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_does_not_depend_on_the_batch(family: str) -> None:
    model, texts = random_model(family, seed=2), some_texts(6, seed=2)
    likelihood = likelihood_of(model, letters())
    together = likelihood.log_probabilities(texts * 7)
    for i, scores in enumerate(together):
        assert scores == pytest.approx(together[i % 6], abs=1e-5)
    for text, scores in zip(texts, together, strict=False):
        assert scores == pytest.approx(likelihood.log_probabilities([text])[0], abs=1e-5)


def test_a_glm_scores_as_its_left_to_right_objective() -> None:
    """One text after the other: the objective's mean over its targets."""
    model, tokens = random_model("glm", seed=3), GLMTokens.of(letters())
    objective = LeftToRight(tokens, task_masks=True)
    texts = some_texts(8, seed=3)
    for text, scores in zip(texts, likelihood_of(model, letters()).log_probabilities(texts), strict=True):
        stream = np.array([tokens.separator, *text, tokens.separator])  # the last token is for others
        batch = objective.collate([objective.example(stream, np.random.default_rng(0))])
        assert objective.counts(batch)["targets"] == len(text)
        loss, _ = objective.loss(model, batch)
        assert -scores.mean() == pytest.approx(loss.item(), abs=1e-5)


def test_a_unilm_scores_as_it_writes() -> None:
    model, texts = random_model("unilm", seed=4), some_texts(8, seed=4)
    expected = score_left_to_right(model, BERTTokens.of(letters()), texts)
    for scores, others in zip(likelihood_of(model, letters()).log_probabilities(texts), expected, strict=True):
        assert scores == pytest.approx(others, abs=2e-5)


def test_a_bert_has_a_pseudo_likelihood_only() -> None:
    model, texts = random_model("bert", seed=5), some_texts(8, seed=5)
    likelihood = likelihood_of(model, letters())
    assert not likelihood.exact and not likelihood.by_design and "no probability" in likelihood.note
    found = likelihood.log_probabilities(texts)
    for scores, others in zip(found, pseudo_log_likelihood(model, texts, BERTTokens.of(letters())), strict=True):
        assert scores == pytest.approx(others, abs=1e-6)
    whole_words = [5, 6, 7, 8, 5]  # nothing of a word is masked but the token itself
    expected = [next_token(model, "bert", whole_words, place)[token].item() for place, token in enumerate(whole_words)]
    assert likelihood.log_probabilities([whole_words])[0] == pytest.approx(expected, abs=2e-5)


def test_what_each_says_of_itself() -> None:
    said = {family: likelihood_of(random_model(family), letters()) for family in (*FAMILIES, "lstm")}
    assert {family for family, one in said.items() if one.exact} == set(EXACT)
    assert {family for family, one in said.items() if one.by_design} == {"gpt", "lstm", "glm", "unilm"}
    assert {family for family, one in said.items() if one.note} == {"t5", "bert"}
    with pytest.raises(InputError, match="a Linear gives texts no likelihood"):
        likelihood_of(torch.nn.Linear(2, 2), letters())


@pytest.mark.parametrize(
    ("family", "most"), [("gpt", CONTEXT), ("glm", CONTEXT), ("unilm", CONTEXT - 1), ("bert", CONTEXT - 2)]
)
def test_a_text_that_is_too_long_is_one_line(family: str, most: int) -> None:
    """A GPT reads a token before it and not its last, a UniLM [CLS] too; a GLM's positions in a blank end there."""
    likelihood = likelihood_of(random_model(family), letters())
    text = np.random.default_rng(0).choice(LETTERS, most + 1).tolist()
    (longest,) = likelihood.log_probabilities([text[:most]])
    assert longest.shape == (most,) and np.isfinite(longest).all()
    with pytest.raises(InputError) as error:
        likelihood.log_probabilities([text[:most], text])
    assert str(error.value) == f"text 2 of 2 has {most + 1} tokens, the model scores up to {most}"


def test_a_t5_reads_any_length() -> None:
    text = np.random.default_rng(0).choice(LETTERS, 2 * CONTEXT).tolist()
    (found,) = likelihood_of(random_model("t5"), letters()).log_probabilities([text])
    assert found.shape == (2 * CONTEXT,) and np.isfinite(found).all()
