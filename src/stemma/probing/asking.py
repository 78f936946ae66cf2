"""The likeliest answers to one cloze question, whatever the family of the model."""

from typing import Any

import torch

from stemma.data.tokenizers import Tokenizer
from stemma.families.bert.model import BERT
from stemma.families.glm.model import GLM
from stemma.families.t5.model import T5
from stemma.inference.filling import fill
from stemma.probing.facts import Query
from stemma.probing.facts_readings import reading_of


@torch.inference_mode()
def likeliest_answers(model: Any, tokenizer: Tokenizer, text: str, *, top: int = 8) -> list[tuple[str, float]]:
    """Return the likeliest answers to a text with [MASK] in it, best first, with their natural log-probabilities.

    BERT answers with a token a blank, T5 and GLM with as many as they like; an ELMo with the word in the first blank,
    whose probability is the geometric mean of both directions'; other models with the token after what is before it.

    Raises:
        InputError: no blank in the text, a text that is too long, or a model that cannot answer.
    """
    if isinstance(model, BERT | T5 | GLM):
        return [(" | ".join(one.pieces), one.log_probability) for one in fill(model, tokenizer, text, top_k=top)[0]]
    reading = reading_of(model, tokenizer)
    plain = sorted(set(range(min(tokenizer.vocabulary, reading.answers))) - tokenizer.special)
    if tokenizer.has_whole_words:  # a line end, which an ELMo's tokenizer has, is none
        plain = [token for token in plain if tokenizer.token(token).strip()]
    scores = reading.log_probabilities([Query.of([text])], plain)[0]
    best = scores.topk(min(top, len(plain)))
    return [
        (tokenizer.decode([plain[place]]).strip(" "), score)
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
