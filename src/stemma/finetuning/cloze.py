"""Classification as a cloze question: which label's word stands in the blank? (Du et al. 2022, section 2.3.)"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.labelled import LabelledData
from stemma.data.tokenizers import Tokenizer, pieces_in_text
from stemma.errors import InputError
from stemma.families.glm.examples import Example, collate, filled_example
from stemma.families.glm.model import GLM
from stemma.families.glm.objective import target_states
from stemma.families.glm.tokens import GLMTokens
from stemma.finetuning.choosing import log_likelihoods
from stemma.finetuning.patterns import FIELDS, MASK, check_pattern, fill_pattern

PATTERNS = ("{text} It is [MASK].", "{text} [MASK], {pair}")  # of a text, of a pair


@dataclass(frozen=True)
class ClozeClassification:
    """The cross-entropy over the labels, each scored by the log-probability of its word, and of the end, in the blank.

    Where each word is one token, all are read off one forward pass, without the end, as the reference does.

    Args:
        glm_tokens: the tokenizer's special tokens. pattern: the question: "{text}", "{pair}" and one "[MASK]" in it.
        words: token ids of each label's word. longest: most tokens of an input, of which `{text}` and `{pair}` are cut.
        label_smoothing: in training, share of each target that is spread evenly over the labels.
    """

    glm_tokens: GLMTokens
    pattern: str
    words: tuple[tuple[int, ...], ...]
    longest: int
    label_smoothing: float = 0.0

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, label_words: Sequence[str], longest: int, *, pattern: str | None, pair: bool
    ) -> "ClozeClassification":
        """Build it from the labels' words.

        Raises:
            InputError: a pattern without one blank, or words that the tokenizer writes alike.
        """
        pattern = PATTERNS[pair] if pattern is None else pattern
        check_pattern(pattern, FIELDS[: 1 + pair])
        if pattern.count(MASK) != 1:
            raise InputError(f"pattern {pattern!r}: {pattern.count(MASK)} blanks; expected one {MASK} in it")
        words = tuple(tuple(ids) for ids in pieces_in_text(tokenizer, label_words))
        for index, word in enumerate(words):
            if not word or word in words[:index]:
                raise InputError(f"label word {label_words[index]!r}: another one has the same tokens, or it has none")
        return cls(GLMTokens.of(tokenizer), pattern, words, longest)

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return len(self.words)

    @property
    def single(self) -> bool:
        """Whether each word is one token."""
        return all(len(word) == 1 for word in self.words)

    def encode(self, data: LabelledData, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """Return `rows` (the question answered in each way; one row if each word is one token), `label`, `tokens`."""
        answers: list[tuple[int, ...]] = [()] if self.single else list(self.words)
        ids = self.glm_tokens
        room = self.longest - max(len(answer) for answer in answers) - 3  # [CLS], the end, and the start of the answer
        rows = [dict(zip(FIELDS, texts, strict=False)) for texts in data.texts]
        examples = []
        filled = fill_pattern(self.pattern, rows, tokenizer, room, mask=ids.mask)
        for tokens, label in zip(filled, data.labels, strict=True):
            context = [ids.beginning, *tokens, ids.end]
            place = context.index(ids.mask)
            answered = [
                filled_example(context, [place], [answer], ids.piece_start, ids.piece_end) for answer in answers
            ]
            examples.append({"rows": answered, "label": label, "tokens": answered[0]["tokens"]})
        return examples

    def example(self, tokens: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return the example as it is."""
        return tokens

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the rows of all examples as GLM's batch (see `examples.collate` there), with `labels` [batch]."""
        rows: list[Example] = [row for example in examples for row in example["rows"]]
        return {**collate(rows, self.glm_tokens.end), "labels": torch.tensor([e["label"] for e in examples])}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the number of examples."""
        return {"targets": len(batch["labels"])}

    def loss(
        self, model: GLM, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the step's loss, and sums to report."""
        smoothing, count = self.label_smoothing if model.training else 0.0, len(batch["labels"])
        scores = self.scores(model, batch)
        nll = F.cross_entropy(scores, batch["labels"], reduction="sum", label_smoothing=smoothing)
        return nll / (totals or {"targets": count})["targets"], {"nll": nll.detach(), "targets": count}

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, float32 [batch]."""
        return F.cross_entropy(scores, targets, reduction="none")

    def scores(self, model: GLM, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the log-probability of each label's word, float32 [batch, outputs] (up to a constant of the row)."""
        # Where words are one token, the start token is the only one with a target.
        states, _ = target_states(model, batch)
        if self.single:
            words = torch.tensor([word[0] for word in self.words], device=states.device)
            return F.linear(states, model.output_weight[words].to(states.dtype)).float()
        return log_likelihoods(model, states, batch["targets"]).view(-1, self.outputs)
