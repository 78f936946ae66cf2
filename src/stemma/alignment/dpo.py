"""Direct preference optimisation: learn from comparisons without a reward model (Rafailov et al. 2023).

IPO is Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences", section 5; the
paper does not say how log-ratios of texts are scaled, and as TRL does we take means over the tokens.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stemma.alignment import ranking
from stemma.alignment.comparisons import read_splits
from stemma.alignment.dialogues import fingerprint_of
from stemma.alignment.reading import IGNORED, Batch, Reading
from stemma.alignment.recipe import DPORecipe
from stemma.alignment.reward import describe_comparisons
from stemma.alignment.stage import adapt, describe_model, load_pupil, reached, train, workplace
from stemma.families.weight_hash import hash_of_weights
from stemma.files import write_whole
from stemma.finetuning.in_batches import in_batches, means_of_loss
from stemma.layers.token_log_probabilities import token_log_probabilities
from stemma.training.hardware import choose_precision
from stemma.training.objective import Display, Measurement
from stemma.training.progress import Silent
from stemma.training.trainer import Outcome

REFERENCE = "reference.safetensors"


def dpo_loss(
    policy: Tensor, reference: Tensor, *, beta: float = 0.1, loss: str = "sigmoid", label_smoothing: float = 0.0
) -> Tensor:
    """Return the loss of each pair, float [pairs].

    Args:
        policy, reference: float [pairs, 2], log-probabilities of the chosen and the rejected response: sums over their
            tokens, for "ipo" means.
        beta: how much the policy is held to the reference. loss: "sigmoid", -log sigmoid(beta * margin); or "ipo",
            (margin - 1 / (2 beta))^2.
        label_smoothing: of "sigmoid": the share of the labels that are taken to be wrong.
    """
    ratios = policy - reference
    margin = ratios[:, 0] - ratios[:, 1]
    if loss == "ipo":
        return (margin - 1 / (2 * beta)).square()
    right, wrong = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def response_log_probabilities(model: Any, reading: Reading, batch: Batch, *, mean: bool = False) -> Tensor:
    """Return the log-probability of each sample's whole response, its end included, float32 [samples].

    Args:
        batch: what `reading` collated. mean: over the tokens, instead of their sum.
    """
    kept = batch["targets"] != IGNORED
    states = reading.states(model, {**batch, "places": batch["places"][kept]})
    each = token_log_probabilities(states, model.output_weight, batch["targets"][kept])
    samples = len(batch["reads"])
    owner = torch.arange(samples, device=each.device).repeat_interleave(batch["reads"])[kept]
    sums = each.new_zeros(samples).index_add(0, owner, each)
    return sums / torch.bincount(owner, minlength=samples) if mean else sums


@dataclass(frozen=True)
class Preferences:
    """The mean of `dpo_loss` over pairs; options as there."""

    reading: Reading
    beta: float = 0.1
    loss_kind: str = "sigmoid"
    label_smoothing: float = 0.0

    def example(self, tokens: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return the example as it is."""
        return tokens

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return what `Reading.collate` makes of the chosen and rejected responses in turn; and `reference`, float32
        [pairs, 2], where the examples have it."""
        batch = self.reading.collate([text for example in examples for text in example["texts"]])
        if "reference" in examples[0]:
            batch["reference"] = torch.stack([example["reference"] for example in examples])
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of pairs."""
        return {"targets": len(batch["reads"]) // 2}

    def loss(
        self, model: Any, batch: Batch, totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the update's loss, and sums to report."""
        counts, reference = self.counts(batch), batch["reference"]
        policy = self.log_probabilities(model, batch)
        losses = dpo_loss(policy, reference, beta=self.beta, loss=self.loss_kind, label_smoothing=self.label_smoothing)
        ratios = (policy - reference).detach()
        margins = self.beta * (ratios[:, 0] - ratios[:, 1])
        nll = losses.sum()
        return nll / max((totals or counts)["targets"], 1), {
            "nll": nll.detach(),
            **counts,
            "accuracy": (margins > 0).sum(),
            "margin": margins.sum(),
            "chosen_gain": ratios[:, 0].sum(),
            "rejected_gain": ratios[:, 1].sum(),
        }

    def log_probabilities(self, model: Any, batch: Batch) -> Tensor:
        """Return what `dpo_loss` takes of a model, float32 [pairs, 2]."""
        return response_log_probabilities(model, self.reading, batch, mean=self.loss_kind == "ipo").view(-1, 2)


def in_pairs(examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return an example for each pair of what `ranking.encode` returns."""
    pairs = []
    for example in examples:
        for pair in example["pairs"]:
            texts = [example["texts"][number] for number in pair]
            pairs.append({"texts": texts, "tokens": np.concatenate([text["tokens"] for text in texts])})
    return pairs


def optimise(
    recipe: DPORecipe, out: Path, *, overwrite: bool = False, display: Display | None = None
) -> tuple[Outcome, dict[str, Any] | None]:
    """Align a model by DPO into the directory `out`, or go on where an earlier run of it stopped there.

    The reference is the model as it comes; what it thinks of the responses is computed once and kept in `out`.

    Returns:
        how the run ended, and what the last weights reach on the held-out comparisons, as in `out`/results.json (None:
        interrupted).
    Raises:
        InputError: a model, data or settings that cannot be used.
        Diverged: the loss was not finite several updates in a row.
        OSError: the last checkpoint could not be written.
    """
    shown, data = display or Silent(), recipe.data
    given, held = read_splits(data)
    with workplace(out, recipe) as workers:
        pupil, options = load_pupil(recipe, workers.device), recipe.objective
        objective = Preferences(pupil.reading, options.beta, options.loss, options.label_smoothing)
        encoded = [ranking.encode(part, pupil.renderer, pupil.reading) for part in (given.prompts, held)]
        learned, held_out = (in_pairs(examples) for examples, _, _ in encoded)

        def measure(model: Any) -> Measurement:
            return measure_preferences(model, objective, held_out, recipe.training.batch)

        def prepare() -> None:
            precision = choose_precision(recipe.execution.precision, workers.device)
            with torch.autocast(workers.device.type, precision, enabled=precision != torch.float32):
                refer(pupil.model, objective, [*learned, *held_out], out / REFERENCE, recipe.training.batch, shown)

        adapt(pupil.model, recipe)
        outcome = train(
            recipe,
            out,
            pupil,
            pupil.model,
            objective,
            learned,
            [len(example["tokens"]) for example in learned],
            measure=measure,
            fingerprints={"data": fingerprint_of(given.prompts)},
            overwrite=overwrite,
            display=shown,
            workers=workers,
            summary=[
                *describe_comparisons(data.train, encoded[0][1], encoded[1][1], given, encoded[0][2]),
                describe_model(recipe, pupil.model),
            ],
            prepare=prepare,
        )
        return outcome, reached(out, outcome, {"pairs": len(held_out)})


def measure_preferences(model: Any, objective: Preferences, examples: Sequence[Any], batch: int) -> Measurement:
    """Return the mean loss over pairs, how often the chosen response gained more than the other, and how much each
    gained in log-probability."""
    means = means_of_loss(model, objective, examples, batch)
    return Measurement(means.pop("nll"), len(examples), means, None)


@torch.no_grad()
def refer(
    model: nn.Module, objective: Preferences, examples: Sequence[dict[str, Any]], file: Path, batch: int, shown: Display
) -> None:
    """Give each example what the reference thinks of its pair, as `reference`; kept in `file` for the next time.

    Raises:
        OSError: the file cannot be written.
    """
    key = _hash(model, objective, examples)
    found = _kept(file, key)
    if found is None:
        parts, piece = [], 16 * batch
        model.eval()
        with shown.preparing() as report:
            for start in range(0, len(examples), piece):
                report("reference", start, len(examples))
                some = examples[start : start + piece]
                parts += in_batches(
                    model, objective, some, lambda collated: objective.log_probabilities(model, collated).cpu(), batch
                )
        found = torch.stack(parts)
        with write_whole(file) as temporary:
            save_file({"log_probabilities": found}, temporary, metadata={"key": key})
    for example, pair in zip(examples, found, strict=True):
        example["reference"] = pair


def _kept(file: Path, key: str) -> Tensor | None:
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as opened:
        if (opened.metadata() or {}).get("key") != key:
            return None
        return opened.get_tensor("log_probabilities")


def _hash(model: nn.Module, objective: Preferences, examples: Sequence[dict[str, Any]]) -> str:
    """Hash everything that decides the reference's log-probabilities."""
    content: Any = hashlib.sha256(f"{objective.loss_kind} {hash_of_weights(model)}".encode())
    for example in examples:
        for text in example["texts"]:
            for array in text.values():
                content.update(np.ascontiguousarray(array))
    return content.hexdigest()
