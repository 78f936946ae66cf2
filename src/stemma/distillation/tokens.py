"""Distillation token by token: the student's distribution follows its teachers' at every place of a response.

On-policy (Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes"), the
responses are the student's own, so that it learns what to do where its own words have led it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.alignment.reading import IGNORED, Batch, Reading, Sample
from stemma.alignment.rollouts import write_responses
from stemma.data.tokenizers import Tokenizer
from stemma.distillation.linear_divergence import SoftLoss, Targets, linear_divergence
from stemma.distillation.recipe import OnPolicyRecipe
from stemma.distillation.records import targets_of_records
from stemma.distillation.teachers import Teacher, hidden_distance, targets_of
from stemma.layers.ensembles import Mean

_TEACHER = "teacher "


@dataclass(frozen=True)
class Taught:
    """The mean of `SoftLoss` over the tokens of the responses; teachers of one reading see one batch.

    Args:
        reading, tokenizer: of the student. teachers: none, where the examples have records (see records.py).
        mean, weights: of several teachers. on_policy: None: only the data's responses.
        scale: of `soft_loss`. hidden: what the distance of the hidden states weighs beside it (see recipe.TermsRecipe).
    """

    reading: Reading
    tokenizer: Tokenizer
    teachers: Sequence[Teacher]
    soft_loss: SoftLoss
    mean: Mean = "arithmetic"
    weights: Sequence[float] | None = None
    on_policy: OnPolicyRecipe | None = None
    scale: float = 1.0
    hidden: float = 0.0

    def example(self, tokens: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return what student and teachers read of an item (see material.py)."""
        sample = Sample(tokens["tokens"][: tokens["prompt"]].tolist(), tokens["tokens"][tokens["prompt"] :].tolist())
        example: dict[str, Any] = {"student": self.reading.frame(sample), "sample": sample}
        example["teachers"] = [None if self._shares(one) else one.frame(sample) for one in self.teachers]
        if "record" in tokens:
            example["record"] = tokens["record"]()
        return example

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the student's batch (see `Reading.collate`), those of teachers that read otherwise, with names that
        begin with their number, records, and the `prompts` as ids one behind the other, with their `prompt_lengths`."""
        batch = self.reading.collate([example["student"] for example in examples])
        for number, teacher in enumerate(self.teachers):
            if not self._shares(teacher):
                theirs = teacher.reading.collate([example["teachers"][number] for example in examples])
                batch |= {f"{_TEACHER}{number} {name}": value for name, value in theirs.items()}
        with torch.autocast("cpu", enabled=False):  # which does not know the records' 16 bits
            for name in examples[0].get("record", ()):
                batch[name] = torch.cat([example["record"][name] for example in examples])
        if self.on_policy is not None:
            prompts = [list(example["sample"].prompt) for example in examples]
            batch["prompts"] = torch.tensor([token for prompt in prompts for token in prompt])
            batch["prompt_lengths"] = torch.tensor([len(prompt) for prompt in prompts])
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return how many tokens are learned."""
        return {"targets": int((batch["targets"] != IGNORED).sum())}

    def loss(
        self, model: Any, batch: Batch, totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the update's loss, and sums to report: `soft` is the divergence at the loss's
        temperature, `hard` the cross-entropy of the responses."""
        counts = self.counts(batch)
        share = counts["targets"] / max((totals or counts)["targets"], 1)
        if self.on_policy is not None and model.training and float(torch.rand(())) < self.on_policy.share:
            batch = self._own(model, batch, self.on_policy)
            counts = self.counts(batch)
        kept = batch["targets"] != IGNORED
        states = self.reading.states(model, {**batch, "places": batch["places"][kept]})
        theirs = self._states(batch)
        count = counts["targets"]
        loss, soft, hard = linear_divergence(
            states,
            model.output_weight[: self.tokenizer.vocabulary],
            self._targets(batch, theirs),
            batch["targets"][kept],
            self.soft_loss,
            divisor=max(count, 1),
        )
        loss, sums = self.scale * loss, {"soft": soft * count, "hard": hard * count}
        if self.hidden:
            sums["hidden"] = hidden_distance(states, theirs)
            loss = loss + self.hidden * sums["hidden"] / max(count, 1)
            sums["hidden"] = sums["hidden"].detach()
        return loss * share, {"nll": loss.detach() * count, **sums, **counts}

    def _states(self, batch: Batch) -> list[Tensor]:
        return [teacher.states(self._read_by(number, batch)) for number, teacher in enumerate(self.teachers)]

    def _targets(self, batch: Batch, states: Sequence[Tensor]) -> Targets:
        if not self.teachers:
            return targets_of_records(batch, self.soft_loss.temperature)
        return targets_of(self.teachers, states, self.soft_loss.temperature, self.mean, self.weights)

    def log_probabilities(self, batch: Batch) -> list[Tensor]:
        """Return what the teachers think at each learned token of a collated batch, float32 [tokens, vocabulary] in
        pieces."""
        count = self.counts(batch)["targets"]
        targets = self._targets(batch, self._states(batch))
        return [targets(slice(start, min(start + 256, count)), torch.empty(0)) for start in range(0, count, 256)]

    def _shares(self, teacher: Teacher) -> bool:
        return teacher.order is None and teacher.reading == self.reading

    def _read_by(self, number: int, batch: Batch) -> Batch:
        if self._shares(self.teachers[number]):
            return batch
        prefix = f"{_TEACHER}{number} "
        return {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}

    def _own(self, model: Any, batch: Batch, options: OnPolicyRecipe) -> dict[str, Tensor]:
        """Return the batch of what the student now writes for the prompts."""
        prompts = [part.tolist() for part in batch["prompts"].cpu().split(batch["prompt_lengths"].tolist())]
        seed = int(torch.randint(1 << 62, ()))
        model.eval()
        # A teacher may read no more than the data's longest.
        longest = [min(options.longest, self.reading.longest - len(prompt)) for prompt in prompts]
        seeds = range(seed, seed + len(prompts))
        responses = write_responses(
            model, self.tokenizer, prompts, seeds=seeds, longest=longest, temperature=options.temperature
        )
        model.train()
        items = [
            {"tokens": np.array([*prompt, *response.tokens], np.int64), "prompt": len(prompt)}
            for prompt, (response,) in zip(prompts, responses, strict=True)
        ]
        rng = np.random.default_rng(0)  # nothing is drawn
        collated = self.collate([self.example(item, rng) for item in items])
        return {name: value.to(batch["targets"].device) for name, value in collated.items()}
