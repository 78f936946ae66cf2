"""How likely whole texts are by each family, token by token, so that all can be put side by side in bits per byte.

GPT     log p(token | those before)
Mistral the same
LSTM    the same
GLM     the same, behind a final [gMASK]                                     (Du et al. 2022, section 2.2)
UniLM   the same, read at a [MASK] behind them under its left-to-right mask  (Dong et al. 2019, section 2.3)
T5      the same, as the filling of a text that is one gap: it was not trained for it
BERT    log p(token | all others): no probability of the text, and never to be compared with the others
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.evaluation.blanks import chosen_log_probabilities, padded
from stemma.families.bert.model import BERT
from stemma.families.bert.pseudo_likelihood import pseudo_log_likelihood
from stemma.families.bert.tokens import BERTTokens
from stemma.families.dispatch import with_article
from stemma.families.glm.examples import collate, continuation_example
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import GLMTokens
from stemma.families.gpt.model import GPT
from stemma.families.lstm.model import LSTM
from stemma.families.mistral.model import Mistral
from stemma.families.t5.model import T5
from stemma.families.t5.tokens import sentinel_ids
from stemma.families.unilm.model import SEGMENTS
from stemma.inference.filling_scores import target_scores
from stemma.layers.masks import Mask

_ROWS = 32

Texts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Likelihood:
    """How a model finds texts likely.

    Args:
        log_probabilities: of texts (token ids without special tokens): for each, float64 [tokens] in nats. Raises
            InputError for a text that is longer than the model reads (which text, and how long it may be).
        exact: their sum is the logarithm of a probability of the text. by_design: the framework was made for it.
        note: what is done instead.
    """

    log_probabilities: Callable[[Texts], list[np.ndarray]]
    exact: bool = True
    by_design: bool = True
    note: str = ""


def likelihood_of(model: Any, tokenizer: Tokenizer) -> Likelihood:
    """Return how a model in eval mode finds texts likely.

    Raises:
        InputError: the model is of no family that does.
    """
    if isinstance(model, GPT | Mistral):
        return Likelihood(lambda texts: _gpt(model, tokenizer, _fitting(texts, model.config.context)))
    if isinstance(model, LSTM):
        return Likelihood(lambda texts: _gpt(model, tokenizer, texts))
    if isinstance(model, GLM):
        # In the blank there are the positions 1 to `context`.
        return Likelihood(lambda texts: _glm(model, tokenizer, _fitting(texts, model.config.context)))
    if isinstance(model, T5):
        note = "writes the text as the filling of one gap, for which it was not trained"
        return Likelihood(lambda texts: _t5(model, tokenizer, texts), by_design=False, note=note)
    if isinstance(model, BERT) and model.config.segments > 2:
        # [CLS] and [MASK] stand beside all tokens but the last.
        return Likelihood(lambda texts: _unilm(model, tokenizer, _fitting(texts, model.config.context - 1)))
    if isinstance(model, BERT):
        note = "pseudo-log-likelihood: each token given all others, which is no probability of the text"
        ids = BERTTokens.of(tokenizer)
        return Likelihood(
            lambda texts: pseudo_log_likelihood(model, texts, ids), exact=False, by_design=False, note=note
        )
    expected = "a GPT, Mistral, LSTM, GLM, T5, UniLM or BERT"
    raise InputError(f"{with_article(model)} gives texts no likelihood: expected {expected}")


def _fitting(texts: Texts, most: int) -> Texts:
    for number, text in enumerate(texts, start=1):
        if len(text) > most:
            raise InputError(f"text {number} of {len(texts)} has {len(text)} tokens, the model scores up to {most}")
    return texts


@torch.inference_mode()
def _gpt(model: GPT | Mistral | LSTM, tokenizer: Tokenizer, texts: Texts) -> list[np.ndarray]:
    found = []
    for start in range(0, len(texts), _ROWS):
        part = texts[start : start + _ROWS]
        tokens, _ = padded([[tokenizer.separator, *text] for text in part], model.output_weight.device)
        chosen = chosen_log_probabilities(model.logits(model.hidden(tokens[:, :-1])), tokens[:, 1:])
        found += [row[: len(text)].cpu().numpy() for row, text in zip(chosen, part, strict=True)]
    return found


@torch.inference_mode()
def _glm(model: GLM, tokenizer: Tokenizer, texts: Texts) -> list[np.ndarray]:
    ids = GLMTokens.of(tokenizer)
    found = []
    for start in range(0, len(texts), _ROWS):
        samples = [np.array([ids.beginning, *text]) for text in texts[start : start + _ROWS]]
        examples = [continuation_example(sample, 1, ids.document_mask, ids.piece_start) for sample in samples]
        batch = {name: tensor.to(model.output_weight.device) for name, tensor in collate(examples, ids.end).items()}
        found += [np.array(row) for row in target_scores(model, batch)]
    return found


@torch.inference_mode()
def _t5(model: T5, tokenizer: Tokenizer, texts: Texts) -> list[np.ndarray]:
    gap, device = sentinel_ids(tokenizer)[0], model.output_weight.device
    found = []
    for start in range(0, len(texts), _ROWS):
        part = texts[start : start + _ROWS]
        source = torch.tensor([[gap, tokenizer.separator]] * len(part), device=device)
        target, _ = padded([[gap, *text] for text in part], device)
        chosen = chosen_log_probabilities(model.logits(model.hidden(source, target)), target)
        found += [row[1 : len(text) + 1].cpu().numpy() for row, text in zip(chosen, part, strict=True)]
    return found


@torch.inference_mode()
def _unilm(model: BERT, tokenizer: Tokenizer, texts: Texts) -> list[np.ndarray]:
    ids, device = BERTTokens.of(tokenizer), model.masked_weight.device
    segment = SEGMENTS["left_to_right"][0]
    found = [np.zeros(len(text)) for text in texts]
    # Sorted, so that those of about equal length are together.
    prefixes = sorted((place, i) for i, text in enumerate(texts) for place in range(len(text)))
    for start in range(0, len(prefixes), 4 * _ROWS):
        part = prefixes[start : start + 4 * _ROWS]
        tokens, _ = padded([[ids.first, *texts[i][:place], ids.mask] for place, i in part], device)
        hidden = model.hidden(tokens, torch.full_like(tokens, segment), Mask(causal=True))
        read = hidden[torch.arange(len(part)), torch.tensor([place + 1 for place, _ in part])]
        expected = torch.tensor([texts[i][place] for place, i in part], device=device)
        for (place, i), score in zip(
            part, chosen_log_probabilities(model.logits(read), expected).tolist(), strict=True
        ):
            found[i][place] = score
    return found
