"""How likely whole answers of any number of tokens are in the blank of a question.

T5, GLM   log p(answer, its end | both sides)
GPT       log p(answer and what follows | what is before): the right side counts too; likewise Mistral
BERT      pseudo-log-likelihood: the sum over the answer's tokens of log p(token | both sides, its other tokens), under
          as many masks as the answer has tokens (Salazar et al. 2020); no probability where there are several
ELMo      (log p(answer | what is before) + log p(answer | what is behind)) / 2
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stemma.data.tokenizers import Tokenizer
from stemma.evaluation.blanks import Blank, way_of
from stemma.families.bert.model import BERT
from stemma.families.elmo.model import ELMo
from stemma.probing.facts import Query
from stemma.probing.facts_readings import Reading, Row, encoded

_AT_ONCE = 1 << 14  # questions with an answer


def answer_scores(
    model: Any,
    tokenizer: Tokenizer,
    reading: Reading,
    queries: Sequence[Query],
    answers: Sequence[Sequence[int]],
    *,
    per_token: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Return float32 [queries, answers], the scores of answers given as token ids.

    Args:
        reading: the model's. per_token: divide each score by the number of the answer's tokens, so that long answers
            are not at a disadvantage.
    """
    if isinstance(model, BERT | ELMo):  # forward and backward, too, each word of an answer is read beside the others
        scores = _by_token(reading, queries, answers, report)
    else:
        scores = torch.empty(len(queries), len(answers))
        way = way_of(model, tokenizer)
        sides = encoded(tokenizer, [(query.left, query.right) for query in queries])
        step = max(1, _AT_ONCE // len(answers))
        for first in range(0, len(queries), step):
            part = sides[first : first + step]
            blanks = [Blank(tuple(left), tuple(answer), tuple(right)) for left, right in part for answer in answers]
            scores[first : first + step] = torch.tensor(way.choice(blanks)).view(len(part), -1)
            report(len(part))
    return scores / torch.tensor([len(answer) for answer in answers]) if per_token else scores


def _by_token(
    reading: Reading,
    queries: Sequence[Query],
    answers: Sequence[Sequence[int]],
    report: Callable[[int], None],
) -> Tensor:
    scores = torch.empty(len(queries), len(answers))
    single = [number for number, answer in enumerate(answers) if len(answer) == 1]
    rows = reading.rows(queries)
    if single:  # of all of these one row tells
        scores[:, single] = reading.of_rows(rows, [answers[number][0] for number in single])
    jobs = [
        (number, masked) for number, answer in enumerate(answers) if len(answer) > 1 for masked in range(len(answer))
    ]
    columns = sorted({answers[number][masked] for number, masked in jobs})
    step = max(1, _AT_ONCE // max(len(jobs), 1))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        if jobs:
            written = [_written(row, answers[number], masked) for row in part for number, masked in jobs]
            found = reading.of_rows(written, columns).view(len(part), len(jobs), len(columns))
            wanted = torch.tensor([columns.index(answers[number][masked]) for number, masked in jobs])
            of_tokens = found.gather(2, wanted.view(1, -1, 1).expand(len(part), -1, 1)).squeeze(2)
            numbers = torch.tensor([number for number, _ in jobs])
            totals = torch.zeros(len(part), len(answers)).index_add_(1, numbers, of_tokens)
            scores[first : first + step, numbers] = totals[:, numbers]
        report(len(part))
    return scores


def _written(row: Row, answer: Sequence[int], masked: int) -> Row:
    """Return a question with an answer in its blank of which one token is masked."""
    mask = row.tokens[row.place]
    inside = [mask if place == masked else token for place, token in enumerate(answer)]
    tokens = [*row.tokens[: row.place], *inside, *row.tokens[row.place + 1 :]]
    shift = len(answer) - 1 if row.second > row.place else 0
    return Row(tokens, row.place + masked, row.second + shift)
