"""Tasks whose answer is written: translations, summaries, and answers to questions; what all families share."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stemma.data.labelled import LabelledData
from stemma.data.tokenizers import Tokenizer, pieces_in_text
from stemma.finetuning.patterns import fill_pattern

_MOST_ROWS = 64  # texts, or beams of them, that are written at a time


@dataclass(frozen=True)
class Writing(ABC):
    """The mean loss of the targets' tokens and of their end; what is predicted is written, greedily or by beams.

    Args:
        pattern: of the source, with {text}, or {question} and {context}, as `fields` says.
        room: most tokens of a source without its frame, None for any number. longest_target: most tokens that are
            learned or written. beams, length_penalty: see `inference.beam`.
        in_text: a target stands behind other words, and its first token is as it is there.
        summaries: measured by ROUGE-1 and 2 beside ROUGE-L, not by BLEU and chrF.
        label_smoothing: in training, share of each target that is spread evenly over the vocabulary.
    """

    tokenizer: Tokenizer
    pattern: str
    fields: tuple[str, ...]
    room: int | None
    longest_target: int
    beams: int = 1
    length_penalty: float = 1.0
    in_text: bool = False
    summaries: bool = False
    label_smoothing: float = 0.0

    def encode(self, data: LabelledData, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """Return what the family's `frame` makes of each source and target; `tokens` is what decides its length."""
        rows = [dict(zip(self.fields, texts, strict=True)) for texts in data.texts]
        sources = fill_pattern(self.pattern, rows, tokenizer, self.room)
        labels: Any = data.labels
        wanted = [label if isinstance(label, str) else first_answer(label) for label in labels]
        targets = pieces_in_text(tokenizer, wanted) if self.in_text else tokenizer.encode_batch(wanted)
        cut = sum(len(target) > self.longest_target for target in targets)
        if cut:
            most = f"{self.longest_target} tokens (data.longest_target)"
            warnings.warn(f"{cut:,} of {len(targets):,} targets are cut to {most}", stacklevel=2)
        pairs = zip(sources, targets, strict=True)
        return [self.frame(source, target[: self.longest_target]) for source, target in pairs]

    @abstractmethod
    def frame(self, source: list[int], target: list[int]) -> dict[str, Any]:
        """Return an example with `prompt`, the token ids after which the target is written, and `tokens`."""

    @abstractmethod
    def write(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        """Return the token ids of the likeliest target of each prompt, as found by the search."""

    def example(self, tokens: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return the example as it is."""
        return tokens

    @torch.inference_mode()
    def predict(self, model: Any, examples: Sequence[dict[str, Any]]) -> list[str]:
        """Return the text that a model in eval mode writes for each example."""
        prompts = [example["prompt"] for example in examples]
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        size = max(_MOST_ROWS // self.beams, 1)
        texts = [""] * len(prompts)
        # The caches of keys and values are of the weights' precision.
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            for start in range(0, len(order), size):
                numbers = order[start : start + size]
                written = self.write(model, [prompts[number] for number in numbers])
                for number, ids in zip(numbers, written, strict=True):
                    texts[number] = self.tokenizer.decode(ids).strip()
        return texts

    def metrics(self, predicted: Sequence[str], data: LabelledData) -> Mapping[str, float]:
        """Return, of texts, BLEU and chrF (0 to 100), ROUGE (0 to 1) and the share of exact matches; of answers F1 and
        exact match."""
        labels: Any = data.labels
        if not isinstance(labels[0], str):
            return answer_metrics(predicted, labels)
        from stemma.evaluation.texts import score_summaries, score_translations

        rouge = score_summaries(predicted, labels)
        kinds = ("rouge1", "rouge2", "rougeL") if self.summaries else ("rougeL",)
        equal = sum(ours == theirs.strip() for ours, theirs in zip(predicted, labels, strict=True))
        return {
            **({} if self.summaries else score_translations(predicted, labels).values),
            **{kind: rouge[kind] for kind in kinds},
            "exact_match": equal / len(predicted),
        }


def first_answer(answers: Sequence[tuple[str, int]]) -> str:
    """Return the text of the first answer to a question, "" if it has none."""
    return answers[0][0] if answers else ""


def answer_metrics(predicted: Sequence[str], answers: Sequence[Sequence[tuple[str, int]]]) -> dict[str, float]:
    """Return SQuAD's "f1", which decides unless the recipe says otherwise, and "exact_match"."""
    from stemma.evaluation.answers import score_answers

    scores = score_answers(predicted, [[text for text, _ in accepted] for accepted in answers])
    return {"f1": scores["f1"], **scores}
