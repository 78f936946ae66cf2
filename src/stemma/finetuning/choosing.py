"""Multiple choice: each option is scored, and the right one's share of the softmax is learned. Rows may have unequally
many options; none is padded.

BERT, UniLM, GPT   one sequence an option, a linear map to one number (Radford et al. 2018, section 3.3)
GLM                the likelihood of the option in the blank behind the question (Du et al. 2022, section 2.3)
T5                 the likelihood of the option's text as the target
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.labelled import LabelledData
from stemma.data.tokenizers import Tokenizer, pieces_in_text
from stemma.families.glm.examples import IGNORED, filled_example
from stemma.families.glm.examples import collate as collate_glm
from stemma.families.glm.model import GLM
from stemma.families.glm.objective import target_states
from stemma.families.glm.tokens import GLMTokens
from stemma.families.t5.model import T5
from stemma.families.t5.objective import SpanCorruption
from stemma.finetuning import reading
from stemma.finetuning.head_objective import HeadObjective
from stemma.finetuning.in_batches import in_batches
from stemma.finetuning.patterns import fill_pattern
from stemma.layers.masks import Mask

Batch = Mapping[str, Tensor]


class Choosing(ABC):
    """What the formulations share; `option_scores` gives a number for each option of a batch, float [options]."""

    @abstractmethod
    def option_scores(self, model: Any, batch: Batch) -> Tensor:
        """Return float32 [options of all rows]."""

    def predict(self, model: Any, examples: Sequence[dict[str, Any]]) -> list[int]:
        """Return which option a model in eval mode chooses of each example, counted from 0."""

        def chosen(batch: Batch) -> list[int]:
            return by_example(self.option_scores(model, batch), batch["options"]).argmax(1).tolist()

        return in_batches(model, self, examples, chosen)

    def metrics(self, predicted: Sequence[int], data: LabelledData) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": sum(a == b for a, b in zip(predicted, data.labels, strict=True)) / len(predicted)}


def by_example(scores: Tensor, options: Tensor) -> Tensor:
    """Return float32 [batch, most options] of [options of all rows], -inf where a row has no option."""
    rows = scores.float().split(options.tolist())
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-torch.inf)


def choice_nll(scores: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Return the summed cross-entropy over each example's own options, float32 []."""
    padded = by_example(scores, batch["options"])
    nll = F.cross_entropy(padded, batch["labels"], reduction="sum")
    if not label_smoothing:
        return nll
    inside = torch.arange(padded.shape[1], device=padded.device) < batch["options"].unsqueeze(1)
    means = padded.log_softmax(1).where(inside, 0).sum(1) / batch["options"]
    return torch.lerp(nll, -means.sum(), label_smoothing)


@dataclass(frozen=True)
class HeadChoosing(Choosing, HeadObjective):
    """An output layer reads question and option together."""

    def encode(self, data: LabelledData, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """Return `rows` (see `Reader.frame`), `label`, and the longest row's `tokens`, of each example."""
        following = iter(tokenizer.encode_batch([text for texts in data.texts for text in texts]))
        examples = []
        for texts, label in zip(data.texts, data.labels, strict=True):
            question, *options = [next(following) for _ in texts]
            rows = [self.reader.frame(*([question, option] if question else [option])) for option in options]
            examples.append({"rows": rows, "label": label, "tokens": max((r["tokens"] for r in rows), key=len)})
        return examples

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return what `reading.collate` makes of all rows; `options` and `labels`, int64 [batch]."""
        return {**reading.collate([row for example in examples for row in example["rows"]]), **_labels(examples)}

    def nll(self, logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """See `choice_nll`."""
        return choice_nll(logits.squeeze(1), batch, label_smoothing)

    def option_scores(self, model: Any, batch: Batch) -> Tensor:
        """See `Choosing`."""
        return model(batch).squeeze(1)


@dataclass(frozen=True)
class LikelihoodChoosing(Choosing):
    """A GLM or a T5 scores each option by the log-probability of all its tokens and of its end.

    Args:
        pattern: of what is read before the option, with {question}. longest: most tokens of question and option.
        label_smoothing: in training, share of each target that is spread evenly over a question's options.
    """

    tokenizer: Tokenizer
    pattern: str
    longest: int
    label_smoothing: float = 0.0

    def encode(self, data: LabelledData, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """Return `rows`, `label` and `tokens` of each example."""
        asked = [{"question": texts[0]} for texts in data.texts]
        following = iter(self.encoded([text for texts in data.texts for text in texts[1:]]))
        examples = []
        # Room for a longest option of a half.
        questions = fill_pattern(self.pattern, asked, tokenizer, self.longest // 2)
        for ids, texts, label in zip(questions, data.texts, data.labels, strict=True):
            options = [next(following)[: self.longest // 2 - 4] for _ in texts[1:]]
            rows = self.rows(ids if texts[0] else [], options)
            tokens = max((row["tokens"] for row in rows), key=len)
            examples.append({"rows": rows, "label": label, "tokens": tokens})
        return examples

    def encoded(self, options: list[str]) -> list[list[int]]:
        """Return the tokens of each option as it is written."""
        return self.tokenizer.encode_batch(options)

    @abstractmethod
    def rows(self, question: list[int], options: list[list[int]]) -> list[dict[str, Any]]:
        """Return what the model reads for each option, with `tokens`."""

    def example(self, tokens: Any, rng: np.random.Generator) -> Any:
        """Return the example as it is."""
        return tokens

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of examples."""
        return {"targets": len(batch["labels"])}

    def loss(
        self, model: Any, batch: Batch, totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the step's loss, and sums to report."""
        smoothing, count = self.label_smoothing if model.training else 0.0, len(batch["labels"])
        nll = choice_nll(self.option_scores(model, batch), batch, smoothing)
        return nll / (totals or {"targets": count})["targets"], {"nll": nll.detach(), "targets": count}


@dataclass(frozen=True)
class GLMChoosing(LikelihoodChoosing):
    """[CLS] question [MASK] end | option, end of piece."""

    @cached_property
    def ids(self) -> GLMTokens:
        """The special tokens."""
        return GLMTokens.of(self.tokenizer)

    def encoded(self, options: list[str]) -> list[list[int]]:
        """Return the tokens of each option behind other words: the blank before it belongs to what stands in a mask."""
        return pieces_in_text(self.tokenizer, options)

    def rows(self, question: list[int], options: list[list[int]]) -> list[dict[str, Any]]:
        """Return GLM's examples."""
        ids = self.ids
        context = [ids.beginning, *question, ids.mask, ids.end]
        return [filled_example(context, [len(context) - 2], [one], ids.piece_start, ids.piece_end) for one in options]

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return GLM's batch of all rows; `options` and `labels`, int64 [batch]."""
        rows = [row for example in examples for row in example["rows"]]
        return {**collate_glm(rows, self.ids.end), **_labels(examples)}

    def option_scores(self, model: GLM, batch: Batch) -> Tensor:
        """See `Choosing`."""
        return log_likelihoods(model, target_states(model, batch)[0], batch["targets"])


@dataclass(frozen=True)
class T5Choosing(LikelihoodChoosing):
    """question end -> option end; a question is encoded once."""

    def rows(self, question: list[int], options: list[list[int]]) -> list[dict[str, Any]]:
        """Return `source` and `target` of each option."""
        end = self.tokenizer.separator
        source = np.array([*question, end])
        return [{"source": source, "target": np.array([*one, end]), "tokens": source} for one in options]

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return T5's batch with a source an example and a target an option; `options`, `labels`, int64 [batch]."""
        batch = SpanCorruption.collate([example["rows"][0] for example in examples])
        targets = SpanCorruption.collate([row for example in examples for row in example["rows"]])["target"]
        return {**batch, "target": targets, **_labels(examples)}

    def option_scores(self, model: T5, batch: Batch) -> Tensor:
        """See `Choosing`."""
        padding, options = batch.get("source_padding"), batch["options"]
        encoded = model.encode(batch["source"], None if padding is None else Mask(key_padding=padding))
        encoded = encoded.repeat_interleave(options, 0)
        padding = None if padding is None else padding.repeat_interleave(options, 0)
        hidden = model.decode(model.shifted(batch["target"]), encoded, source_padding=padding)
        return log_likelihoods(model, hidden[batch["target"] != IGNORED], batch["target"])


def log_likelihoods(model: Any, states: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the targets' log-probabilities in each row, float32 [rows], by the states that predict them."""
    learned = targets != IGNORED
    logits = model.logits(states).float()
    chosen = logits.log_softmax(-1).gather(1, targets[learned].unsqueeze(1)).squeeze(1)
    return torch.zeros(len(targets), device=states.device).index_add(0, learned.nonzero()[:, 0], chosen)


def _labels(examples: Sequence[Any]) -> dict[str, Tensor]:
    return {
        "labels": torch.tensor([example["label"] for example in examples]),
        "options": torch.tensor([len(example["rows"]) for example in examples]),
    }
