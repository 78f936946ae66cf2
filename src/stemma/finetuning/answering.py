"""Extractive question answering: where in the context the answer begins and ends (Devlin et al. 2018, section 4.2).

Contexts longer than the model reads are cut into windows; each token is scored in the window where it has the most
context. That there is no answer is said by pointing at the token that stands for the whole: [CLS], in a GPT the last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.labelled import LabelledData
from stemma.data.tokenizers import Tokenizer
from stemma.finetuning import reading
from stemma.finetuning.head_objective import IGNORED, HeadObjective
from stemma.finetuning.in_batches import in_batches
from stemma.finetuning.windows import windows
from stemma.finetuning.writing import answer_metrics

_LONGEST_QUESTION = 64  # tokens
_LONGEST_ANSWER = 30  # tokens; both as in google-research/bert, run_squad.py


@dataclass(frozen=True)
class Spans(HeadObjective):
    """The mean cross-entropy of an answer's first and of its last token, over all tokens of a window.

    A window without the whole answer is taught that it has none.

    Args:
        stride: by how many tokens of the context windows are apart. causal: see `windows`.
        no_answer: whether questions may have no answer; otherwise one is always given.
    """

    stride: int = 128
    causal: bool = False
    no_answer: bool = False

    def encode(self, data: LabelledData, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """Return of each window `tokens`, `segments`, `read` (all places) and `labels` (of the answer's first and last
        token), and what `predict` needs to find its text."""
        questions = tokenizer.encode_batch([question for question, _ in data.texts])
        contexts = tokenizer.encode_with_offsets([context for _, context in data.texts])
        labels: Any = data.labels
        examples: list[dict[str, Any]] = []
        for number, (question, (context, offsets)) in enumerate(zip(questions, contexts, strict=True)):
            asked, text = question[: self._longest_question], data.texts[number][1]
            answer = answer_tokens(labels[number], text, offsets)
            begin = len(self.reader.before) + len(asked) + len(self.reader.between)
            room = 1 << 30 if self.reader.longest is None else self.reader.longest - begin - len(self.reader.after)
            overlap = max(room - self.stride, 0)
            for window in windows([1] * len(context), room, overlap, causal=self.causal):
                framed = self.reader.frame(asked, context[window.start : window.stop])
                nowhere = int(framed["read"][0])
                examples.append(
                    {
                        **framed,
                        "read": np.arange(len(framed["tokens"])),
                        "labels": np.array(_places(answer, window.start, window.stop, begin, nowhere)),
                        "number": number,
                        "nowhere": nowhere,
                        # Of the window, and of the context, the tokens that are answered for here.
                        "own": slice(begin + window.first - window.start, begin + window.last - window.start),
                        "context": text,
                        "offsets": offsets,
                    }
                )
        return examples

    @property
    def _longest_question(self) -> int:
        """Most tokens of a question: the context has at least half of what is read."""
        return (
            _LONGEST_QUESTION if self.reader.longest is None else min(_LONGEST_QUESTION, self.reader.longest // 2 - 2)
        )

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return what `reading.collate` does; `labels`, int64 [batch, 2]: an answer's first and last place."""
        batch = reading.collate(examples)
        return {**batch, "labels": torch.from_numpy(np.stack([example["labels"] for example in examples]))}

    def nll(self, logits: Tensor, batch: Mapping[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        """Return the sum over windows of the mean of both cross-entropies, float32 []."""
        padded = _by_window(logits, batch)
        ends = (F.cross_entropy(padded[..., end], batch["labels"][:, end], reduction="sum") for end in (0, 1))
        return sum(ends, torch.zeros((), device=logits.device)) / 2

    def predict(self, model: Any, examples: Sequence[dict[str, Any]]) -> list[str]:
        """Return the answer of a model in eval mode to each question, "" where it finds none."""

        def scores(batch: Mapping[str, Tensor]) -> list[np.ndarray]:
            return list(_by_window(model(batch), batch).cpu().numpy())

        own: list[list[np.ndarray]] = [[] for _ in range(examples[-1]["number"] + 1)]
        nowhere = [np.inf] * len(own)
        last: list[dict[str, Any]] = [{}] * len(own)
        for example, found in zip(examples, in_batches(model, self, examples, scores), strict=True):
            number = example["number"]
            own[number].append(found[example["own"]])
            nowhere[number] = min(nowhere[number], float(found[example["nowhere"]].sum()))
            last[number] = example
        answers = []
        for example, parts, none in zip(last, own, nowhere, strict=True):
            score, (first, end) = best_span(np.concatenate(parts), _LONGEST_ANSWER)
            given = score > -np.inf and not (self.no_answer and none > score)
            offsets = example["offsets"]
            answers.append(example["context"][offsets[first][0] : offsets[end][1]].strip() if given else "")
        return answers

    def metrics(self, predicted: Sequence[str], data: LabelledData) -> dict[str, float]:
        """Return SQuAD's F1 and exact match."""
        labels: Any = data.labels
        return answer_metrics(predicted, labels)


def answer_tokens(
    answers: Sequence[tuple[str, int]], context: str, offsets: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
    """Return the first and the last token of the first answer that stands in its context, (-1, -1) if none of them
    does; None if there are no answers."""
    if not answers:
        return None
    for text, start in answers:
        stop = start + len(text)
        if text and start >= 0 and context.startswith(text, start):
            inside = [token for token, (a, b) in enumerate(offsets) if b > start and a < stop]
            if inside:
                return inside[0], inside[-1]
    return -1, -1


def best_span(scores: np.ndarray, longest: int) -> tuple[float, tuple[int, int]]:
    """Return the highest sum of a first and a last token's scores, and which tokens these are.

    Args:
        scores: float [tokens, 2]. longest: most tokens of a span. Without tokens the sum is -inf.
    """
    best, span = -np.inf, (0, 0)
    for distance in range(min(longest, len(scores))):
        sums = scores[: len(scores) - distance, 0] + scores[distance:, 1]
        place = int(sums.argmax())
        if sums[place] > best:
            best, span = float(sums[place]), (place, place + distance)
    return best, span


def _places(answer: tuple[int, int] | None, start: int, stop: int, begin: int, nowhere: int) -> list[int]:
    """Return where in a window an answer begins and ends; nothing is learned of one that cannot be found."""
    if answer == (-1, -1):
        return [IGNORED, IGNORED]
    if answer is None or answer[0] < start or answer[1] >= stop:
        return [nowhere, nowhere]
    return [begin + token - start for token in answer]


def _by_window(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return float32 [batch, length, 2], -inf in the padding, of [reads, 2]."""
    shape = batch["tokens"].shape
    padded = logits.new_full((shape.numel(), 2), -torch.inf, dtype=torch.float32)
    return padded.index_copy(0, batch["read"], logits.float()).view(*shape, 2)
