"""Pseudo-log-likelihood, against masking one token at a time, and what masking the rest of the word is for."""

import numpy as np
import pytest
import torch

from stemma.errors import InputError
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.pseudo_likelihood import pseudo_log_likelihood
from stemma.families.bert.tokens import BERTTokens

CLS, SEP, MASK = 0, 1, 2
TOKENS = BERTTokens(CLS, SEP, MASK, SEP, ["", "", "", *["the", "##se", "un", "##believ", "##able"] * 5], wordpiece=True)


@pytest.fixture
def model() -> BERT:
    torch.manual_seed(0)
    model = BERT(BERTConfig(TOKENS.vocabulary, context=12, layers=2, hidden=24, heads=3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.3
    return model


# the these un unbelievable ##believ
TEXT = [3, 8, 9, 5, 10, 11, 12, 16]
WORD_ENDS = [1, 3, 3, 4, 8, 8, 8, 8]


@torch.no_grad()
def one_at_a_time(model: BERT, text: list[int], stops: list[int]) -> list[float]:
    scores = []
    for place, stop in enumerate(stops):
        masked = text[:place] + [MASK] * (stop - place) + text[stop:]
        logits = model(torch.tensor([[CLS, *masked, SEP]]))[0, 1 + place]
        scores.append(float(logits.double().log_softmax(0)[text[place]]))
    return scores


@pytest.mark.parametrize("batch_tokens", [1, 37, 10_000])
def test_scores_are_those_of_one_mask_at_a_time(batch_tokens: int, model: BERT) -> None:
    texts = [TEXT, TEXT[3:], [], TEXT[:3], [17, 4], TEXT[::-1], [5]]
    stops = [WORD_ENDS, [1, 5, 5, 5, 5], [], [1, 3, 3], [2, 2], None, [1]]
    words = pseudo_log_likelihood(model, texts, TOKENS, batch_tokens=batch_tokens)
    plain = pseudo_log_likelihood(model, texts, TOKENS, within_words=True, batch_tokens=batch_tokens)
    for text, stop, ours, salazar in zip(texts, stops, words, plain, strict=True):
        assert ours.dtype == np.float64 and len(ours) == len(text)
        np.testing.assert_allclose(salazar, one_at_a_time(model, text, list(range(1, len(text) + 1))), atol=1e-5)
        if stop is not None:
            np.testing.assert_allclose(ours, one_at_a_time(model, text, stop), atol=1e-5)
    assert np.abs(words[0] - plain[0]).max() > 0.01
    # A word's last piece and a word of one piece see the same in both.
    np.testing.assert_allclose(words[0][[0, 2, 3, 7]], plain[0][[0, 2, 3, 7]], atol=1e-6)


def test_a_text_that_is_too_long(model: BERT) -> None:
    assert len(pseudo_log_likelihood(model, [[3] * 10], TOKENS)[0]) == 10
    with pytest.raises(InputError, match="text 2 of 2 has 11 tokens, the model scores up to 10"):
        pseudo_log_likelihood(model, [[3] * 10, [3] * 11], TOKENS)
