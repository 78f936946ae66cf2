"""From a student, its teachers and texts to a trained language model."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.alignment.reading import Batch
from stemma.alignment.stage import adapt, describe_model, load_pupil, reached, train, workplace
from stemma.data.content_hashes import digest
from stemma.distillation.linear_divergence import SoftLoss
from stemma.distillation.material import Item, Material, read_material
from stemma.distillation.recipe import DistillationRecipe
from stemma.distillation.records import Records, record_of
from stemma.distillation.teachers import Teacher, load_teachers
from stemma.distillation.tokens import Taught
from stemma.families.weight_hash import hash_of_weights
from stemma.finetuning.in_batches import in_batches, means_of_loss
from stemma.training.hardware import choose_precision
from stemma.training.objective import Display, Measurement
from stemma.training.progress import Silent
from stemma.training.trainer import Outcome

RECORDS = "teachers"


def distil(
    recipe: DistillationRecipe, out: Path, *, overwrite: bool = False, display: Display | None = None
) -> tuple[Outcome, dict[str, Any] | None]:
    """Train the student into the directory `out`, or go on where an earlier run of it stopped there.

    The last weights are in `out`, those with the lowest held-out loss in `out`/best.

    Returns:
        how the run ended, and what it reached, as in `out`/results.json (None: interrupted).
    Raises:
        InputError: models, data or settings that cannot be used.
        Diverged: the loss was not finite several updates in a row.
        OSError: the last checkpoint, or a record of the teachers, could not be written.
    """
    shown, options = display or Silent(), recipe.objective
    with workplace(out, recipe) as workers:
        pupil = load_pupil(recipe, workers.device)
        material = read_material(recipe.data, pupil.tokenizer, pupil.reading, pupil.renderer, shown)
        teachers = load_teachers(options.teachers, pupil.tokenizer, pupil.reading, workers.device)
        loss = SoftLoss(options.divergence, options.beta, options.temperature, options.weight)
        live = Taught(pupil.reading, pupil.tokenizer, teachers, loss, options.mean, options.weights, options.on_policy)
        objective, learned, held_out = live, material.learned, material.held_out
        identity = digest([identity_of(teacher) for teacher in teachers])
        if options.cache is not None:
            objective = replace(live, teachers=())
            learned = Recorded(material.learned, 0)
            held_out = Recorded(material.held_out, len(material.learned))
        adapt(pupil.model, recipe)

        def prepare() -> None:
            if not isinstance(learned, Recorded) or not isinstance(held_out, Recorded):
                return
            key = _key(recipe, material, identity, pupil.tokenizer.fingerprint)
            learned.records = held_out.records = Records(out / RECORDS, key, len(learned) + len(held_out))
            kept = None if options.cache == "full" else options.cache
            items = [*material.learned, *material.held_out]
            precision = choose_precision(recipe.execution.precision, workers.device)
            batch = recipe.training.batch
            learned.records.compute(
                lambda numbers: think(live, [items[number] for number in numbers], kept, batch, precision), shown
            )

        def measure(model: Any) -> Measurement:
            means = means_of_loss(model, objective, held_out, recipe.training.batch)
            metrics = {"divergence": means["soft"], "perplexity": math.exp(min(means["hard"], 700.0))}
            return Measurement(means["nll"], len(held_out), metrics, None)

        outcome = train(
            recipe,
            out,
            pupil,
            pupil.model,
            objective,
            learned,
            material.lengths,
            measure=measure,
            fingerprints={"data": material.fingerprint, "teachers": identity},
            overwrite=overwrite,
            display=shown,
            workers=workers,
            summary=[material.summary, _describe(recipe, teachers), describe_model(recipe, pupil.model)],
            prepare=prepare,
        )
        return outcome, reached(out, outcome, {"examples": len(held_out)})


class Recorded(Sequence[Item]):
    """Items with `record`, which reads what the teachers think of them. first: number of the first one's record."""

    def __init__(self, items: Sequence[Item], first: int) -> None:
        self.items, self.first = items, first
        self.records: Records | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        number = self.first + int(index)
        return {**self.items[index], "record": lambda: self.records.record(number) if self.records else {}}


def think(
    objective: Taught, items: Sequence[Item], kept: int | None, batch: int, precision: torch.dtype = torch.float32
) -> list[dict[str, Tensor]]:
    """Return the records of what an objective's teachers think of items, in their order (see `records.record_of`).

    Args:
        batch: items that are read at a time. precision: that the teachers compute in.
    """

    def run(collated: Batch) -> list[dict[str, Tensor]]:
        device = objective.teachers[0].weight.device
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            pieces = [record_of(piece, kept) for piece in objective.log_probabilities(collated)]
        lengths = (collated["reads"] - 1).tolist()  # behind the last token nothing is learned
        whole = {name: torch.cat([piece[name].cpu() for piece in pieces]).split(lengths) for name in pieces[0]}
        return [{name: parts[place].clone() for name, parts in whole.items()} for place in range(len(lengths))]

    return in_batches(objective.teachers[0].model, objective, items, run, batch)


def identity_of(teacher: Teacher) -> str:
    """Return a hash of a teacher's weights and of how it reads."""
    return digest([repr(teacher.reading), hash_of_weights(teacher.model)])


def _key(recipe: DistillationRecipe, material: Material, teachers: str, tokenizer: str) -> dict[str, Any]:
    options = recipe.objective
    return {
        "teachers": teachers,
        "tokenizer": tokenizer,
        "data": [material.fingerprint, json.loads(recipe.data.model_dump_json())],
        "temperature": options.temperature,
        "mean": [options.mean, options.weights],
        "kind": options.cache,
    }


def _describe(recipe: DistillationRecipe, teachers: Sequence[Teacher]) -> str:
    options = recipe.objective
    sizes = [sum(parameter.numel() for parameter in teacher.model.parameters()) for teacher in teachers]
    named = ", ".join(f"{name} ({size:,} parameters)" for name, size in zip(options.teachers, sizes, strict=True))
    several = f"{options.mean} mean of " if len(sizes) > 1 else ""
    kind = f"jsd {options.beta:g}" if options.divergence == "jsd" else f"{options.divergence} KL"
    own = options.on_policy
    more = "" if own is None else f"; {100 * own.share:g} % of the updates on the student's own responses"
    return (
        f"teachers   {several}{named}: {kind} at temperature {options.temperature:g}, weight {options.weight:g}{more}"
    )
