"""How plausible a masked language model finds a text, token by token.

- Salazar et al. 2020, "Masked Language Model Scoring": pseudo-log-likelihood.
- Kauf and Ivanova 2023, "A Better Way to Do Masked Language Model Scoring": words of several pieces, left to right.

A pseudo-log-likelihood is not the probability of the text (its exponential does not sum to 1 over texts), so bits per
byte made of it must not be compared with a left-to-right model's.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.bert.model import BERT
from stemma.families.bert.tokens import BERTTokens


@torch.no_grad()
def pseudo_log_likelihood(
    model: BERT,
    texts: Sequence[Sequence[int]],
    tokens: BERTTokens,
    *,
    within_words: bool = False,
    batch_tokens: int = 16384,
) -> list[np.ndarray]:
    """Return log p(token | all others) of every token of every text, float64 [tokens] in nats; their sum is its score.

    Args:
        model: in eval mode.
        texts: ids without [CLS] and [SEP], which are put round each and not scored.
        within_words: the further pieces of a token's own word stay visible (Salazar et al.). They give a word's pieces
            away to each other; the default masks those to the right of the token as well (Kauf and Ivanova).
        batch_tokens: about so many tokens are computed at once.
    Raises:
        InputError: a text is longer than the model's context.
    """
    for index, text in enumerate(texts):
        if len(text) + 2 > model.config.context:
            limit = model.config.context - 2
            raise InputError(f"text {index + 1} of {len(texts)} has {len(text)} tokens, the model scores up to {limit}")
    scores = [np.zeros(len(text)) for text in texts]
    device = model.embeddings.token.weight.device
    for rows in _batches(texts, batch_tokens):
        batch = np.stack([_masked(texts[index], place, tokens, within_words) for index, place in rows])
        hidden = model.hidden(torch.from_numpy(batch).to(device))
        places = torch.tensor([place + 1 for _, place in rows], device=device)
        logits = model.logits(hidden[torch.arange(len(rows), device=device), places])
        expected = torch.tensor([texts[index][place] for index, place in rows], device=device)
        for (index, place), score in zip(rows, _log_probability(logits, expected).tolist(), strict=True):
            scores[index][place] = score
    return scores


def _batches(texts: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[tuple[int, int]]]:
    """Yield (text, place) of texts of equal length, so that there is no padding."""
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for length, group in groupby(by_length, key=lambda index: len(texts[index])):
        todo = [(index, place) for index in group for place in range(length)]
        size = max(1, batch_tokens // (length + 2))
        for start in range(0, len(todo), size):
            yield todo[start : start + size]


def _masked(text: Sequence[int], place: int, tokens: BERTTokens, within_words: bool) -> np.ndarray:
    """Return `[CLS] text [SEP]`, int64, with the token at `place` masked, and the rest of its word unless visible."""
    ids = np.array(text, np.int64)
    stop = place + 1
    if not within_words:
        starts = tokens.word_starts(ids)
        while stop < len(ids) and not starts[stop]:
            stop += 1
    ids[place:stop] = tokens.mask
    return np.concatenate([[tokens.first], ids, [tokens.last]])


def _log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.double().log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
