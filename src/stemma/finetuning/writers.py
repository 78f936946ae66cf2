"""How each family writes a target for a source.

GPT     start source delimiter | target end      causal; the loss is the target's alone (Radford et al. 2018)
T5      source end -> target end                 its own task (Raffel et al. 2020), as of a Transformer
GLM     [CLS] source [MASK] end | target         the target in the blank, in Part B (Du et al. 2022, section 2.3)
UniLM   [CLS] source [SEP] | target [SEP]        70 % of the target masked at a time (Dong et al. 2019, section 2.5)
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from stemma.data.collation import padded
from stemma.families.bert.tokens import BERTTokens
from stemma.families.glm.examples import collate as collate_glm
from stemma.families.glm.examples import filled_example
from stemma.families.glm.objective import target_states
from stemma.families.glm.tokens import GLMTokens
from stemma.families.t5.objective import SpanCorruption
from stemma.families.unilm.objective import ClozeMixture
from stemma.finetuning import reading
from stemma.finetuning.head_objective import IGNORED
from stemma.finetuning.writing import Writing
from stemma.inference.beam import beam_search
from stemma.inference.decoder import Decoder
from stemma.inference.encoder_decoder import SourceDecoder, most_new
from stemma.inference.infilling import fill_contexts
from stemma.inference.masked_decoding import MaskedDecoder
from stemma.inference.sampling import Sampling
from stemma.layers.cross_entropy import linear_cross_entropy

Batch = Mapping[str, Tensor]
Loss = tuple[Tensor, dict[str, Tensor | float]]


class _Shifted(Writing):
    """Families whose loss is read off `batch["targets"]`, int64 [batch, length], -100 where nothing is learned."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return how many tokens are predicted."""
        return {"targets": int((batch["targets"] != IGNORED).sum())}

    def loss(self, model: Any, batch: Batch, totals: Mapping[str, int] | None = None) -> Loss:
        """Return this batch's share of the step's loss, and sums to report."""
        divisor = max((totals or self.counts(batch))["targets"], 1)
        hidden, targets = self.hidden(model, batch)
        smoothing = self.label_smoothing if model.training else 0.0
        bias = getattr(model, "output_bias", None)
        options: dict[str, Any] = {"bias": bias, "divisor": divisor, "label_smoothing": smoothing}
        loss = linear_cross_entropy(hidden, model.output_weight, targets, **options)
        return loss, {"nll": loss.detach() * divisor, "targets": (targets != IGNORED).sum()}

    @abstractmethod
    def hidden(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return states, float [tokens, hidden], and the targets that they predict, int64 [tokens]."""


@dataclass(frozen=True)
class GPTWriting(_Shifted):
    """A GPT goes on after the delimiter. start, delimiter, end: its special tokens."""

    start: int = 0
    delimiter: int = 0
    end: int = 0

    def frame(self, source: list[int], target: list[int]) -> dict[str, Any]:
        """Return `prompt`; `tokens` and `targets`, int64 [length]."""
        prompt = [self.start, *source, self.delimiter]
        tokens = [*prompt, *target]
        targets = [*[IGNORED] * (len(prompt) - 1), *target, self.end]
        return {"prompt": prompt, "tokens": np.array(tokens), "targets": np.array(targets)}

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return int64 `tokens` and `targets` [batch, length]."""
        tokens, targets = ([example[name] for example in examples] for name in ("tokens", "targets"))
        return {"tokens": padded(tokens), "targets": padded(targets, IGNORED)}

    def hidden(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `_Shifted.hidden`; causality hides the padding."""
        return model.hidden(batch["tokens"]).flatten(0, 1), batch["targets"].flatten()

    def write(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        """See `Writing.write`."""
        rows = Decoder(model, prompts, copies=[self.beams] * len(prompts), new_tokens=self.longest_target)
        return search(rows, [self.longest_target] * len(prompts), self.end, self)


@dataclass(frozen=True)
class GLMWriting(_Shifted):
    """A GLM fills a blank behind the source."""

    @cached_property
    def ids(self) -> GLMTokens:
        """The special tokens."""
        return GLMTokens.of(self.tokenizer)

    def frame(self, source: list[int], target: list[int]) -> dict[str, Any]:
        """Return `prompt` (Part A) and GLM's example."""
        context = [self.ids.beginning, *source, self.ids.mask, self.ids.end]
        example = filled_example(context, [len(context) - 2], [target], self.ids.piece_start, self.ids.piece_end)
        return {"prompt": context, **example}

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """See `families.glm.examples.collate`."""
        return collate_glm(examples, self.ids.end)

    def hidden(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `_Shifted.hidden`."""
        return target_states(model, batch)

    def write(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        """See `Writing.write`."""
        rows = fill_contexts(
            model,
            self.ids,
            prompts,
            sampling=Sampling(temperature=0),
            limit=self.longest_target,
            beams=self.beams,
            length_penalty=self.length_penalty,
        )
        return [row.pieces[0] for row in rows]


@dataclass(frozen=True)
class T5Writing(_Shifted):
    """The own task of a T5 and of a Transformer. end: the token that ends source and target."""

    end: int = 0

    def frame(self, source: list[int], target: list[int]) -> dict[str, Any]:
        """Return `prompt`, and `source` and `target` with their ends."""
        prompt = [*source, self.end]
        tokens = np.array(prompt)
        return {"prompt": prompt, "tokens": tokens, "source": tokens, "target": np.array([*target, self.end])}

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return T5's batch (see `SpanCorruption.collate`), its target as `targets`."""
        batch = SpanCorruption.collate(examples)
        return {**batch, "targets": batch["target"]}

    def hidden(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `_Shifted.hidden`."""
        states = model.hidden(batch["source"], batch["target"], source_padding=batch.get("source_padding"))
        return states.flatten(0, 1), batch["targets"].flatten()

    def write(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        """See `Writing.write`."""
        limits = [most_new(model, len(prompt), self.longest_target) for prompt in prompts]
        rows = SourceDecoder(model, prompts, copies=[self.beams] * len(prompts), new_tokens=max(limits))
        return search(rows, limits, self.end, self, getattr(model, "length_offset", 0))


@dataclass(frozen=True)
class UniLMWriting(Writing):
    """A UniLM predicts masked tokens of the target, and writes by a mask behind what is written."""

    @cached_property
    def masking(self) -> ClozeMixture:
        """The objective of its pretraining, with the special tokens."""
        return ClozeMixture(BERTTokens.of(self.tokenizer), label_smoothing=self.label_smoothing)

    def frame(self, source: list[int], target: list[int]) -> dict[str, Any]:
        """Return `prompt`, `source` and `target`."""
        ids = self.masking.bert_tokens
        return {
            "prompt": [ids.first, *source, ids.last],
            "tokens": np.array([*source, *target], np.int64),
            "source": np.array(source, np.int64),
            "target": np.array(target, np.int64),
        }

    def example(self, tokens: dict[str, Any], rng: np.random.Generator) -> reading.Example:
        """Return the masked example (see `ClozeMixture.generation_example`)."""
        return self.masking.generation_example(tokens["source"], tokens["target"], rng)

    def collate(self, examples: Sequence[reading.Example]) -> dict[str, Tensor]:
        """See `ClozeMixture.collate`."""
        return self.masking.collate(examples)

    def counts(self, batch: Batch) -> dict[str, int]:
        """See `ClozeMixture.counts`."""
        return self.masking.counts(batch)

    def loss(self, model: Any, batch: Batch, totals: Mapping[str, int] | None = None) -> Loss:
        """See `ClozeMixture.loss`."""
        return self.masking.loss(model, batch, totals)

    def write(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        """See `Writing.write`."""
        ids = self.masking.bert_tokens
        rows = MaskedDecoder(model, ids, prompts, new_tokens=self.longest_target, copies=self.beams)
        return search(rows, [self.longest_target] * len(prompts), ids.last, self)


def search(rows: Any, limits: list[int], end: int, task: Writing, length_offset: int = 0) -> list[list[int]]:
    """Return the best text of each prompt without its end; with one beam that is the likeliest token each time."""
    found = beam_search(
        rows,
        beams=task.beams,
        limits=limits,
        end=end,
        length_penalty=task.length_penalty,
        length_offset=length_offset,
    )
    best = [hypotheses[0].tokens for hypotheses in found]
    return [tokens[:-1] if tokens and tokens[-1] == end else tokens for tokens in best]
