"""From a student, its teachers and texts to a trained language model."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.alignment.reading import Batch, CausalReading
from stemma.alignment.stage import Pupil, adapt, describe_model, load_learner, load_pupil, reached, train, workplace
from stemma.data.content_hashes import digest
from stemma.distillation.masked import MaskedTeacher, TaughtMasked, load_masked_teachers
from stemma.distillation.material import Item, Material, read_material, read_passages
from stemma.distillation.recipe import DistillationRecipe
from stemma.distillation.records import Records, record_of
from stemma.distillation.served import ServedTeacher, is_served
from stemma.distillation.teachers import Teacher, load_teachers, require_one_width
from stemma.distillation.tokens import Taught
from stemma.errors import InputError
from stemma.families.bert.objective import MaskedLanguageModel
from stemma.families.bert.tokens import BERTTokens
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
        served = _served(recipe, pupil)
        material = read_material(recipe.data, pupil.tokenizer, pupil.reading, pupil.renderer, shown)
        names = () if served is not None else options.teachers
        teachers = load_teachers(names, pupil.tokenizer, pupil.reading, workers.device)
        if served is not None and not (out / RECORDS).is_dir():
            served.connect(shown)  # before anything is written
        if options.hidden:
            require_one_width(pupil.model, [teacher.model for teacher in teachers], options.teachers)
        live = Taught(
            pupil.reading,
            pupil.tokenizer,
            teachers,
            options.soft_loss,
            options.mean,
            options.weights,
            options.on_policy,
            options.scale,
            options.hidden,
        )
        objective, learned, held_out = live, material.learned, material.held_out
        # Whose weights are behind an address nobody can tell.
        identity = digest([identity_of(teacher) for teacher in teachers] or options.teachers)
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

            def thought(numbers: Sequence[int]) -> list[dict[str, Tensor]]:
                some = [items[number] for number in numbers]
                if served is None:
                    return think(live, some, kept, batch, precision)
                served.connect(shown)
                return served.think(some)

            learned.records.compute(thought, shown)
            if served is not None:
                served.warn(shown)

        def measure(model: Any) -> Measurement:
            means = means_of_loss(model, objective, held_out, recipe.training.batch)
            return _measurement(means, len(held_out))

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
            summary=[material.summary, _describe(recipe, teachers, served), describe_model(recipe, pupil.model)],
            prepare=prepare,
        )
        return outcome, reached(out, outcome, {"examples": len(held_out)})


def distil_masked(
    recipe: DistillationRecipe, out: Path, *, overwrite: bool = False, display: Display | None = None
) -> tuple[Outcome, dict[str, Any] | None]:
    """Train a BERT at masked places, as DistilBERT was; arguments and result of `distil`.

    Raises:
        InputError, Diverged, OSError: see `distil`.
    """
    shown, options = display or Silent(), recipe.objective
    if options.on_policy is not None or options.cache is not None:
        what = "cache: masks are drawn anew each time" if options.cache is not None else "on_policy: a BERT writes none"
        raise InputError(f"objective.{what}; expected null")
    with workplace(out, recipe) as workers:
        learner = load_learner(recipe, workers.device)
        model, tokenizer = learner.model, learner.tokenizer
        longest = min(recipe.data.longest, model.config.context)
        material = read_passages(recipe.data, tokenizer, longest, shown)
        teachers = load_masked_teachers(options.teachers, tokenizer, longest, workers.device)
        if options.hidden:
            require_one_width(model, [teacher.model for teacher in teachers], options.teachers)
        masking = options.masked.model_dump(exclude={"soft"})
        objective = TaughtMasked(
            MaskedLanguageModel(BERTTokens.of(tokenizer), "full_sentences", **masking),
            teachers,
            options.soft_loss,
            options.mean,
            options.weights,
            options.scale,
            options.hidden,
            options.masked.soft == "all",
        )
        adapt(model, recipe)

        def measure(weights: Any) -> Measurement:
            means = means_of_loss(weights, objective, material.held_out, recipe.training.batch)
            return _measurement(means, len(material.held_out))

        outcome = train(
            recipe,
            out,
            learner,
            model,
            objective,
            material.learned,
            material.lengths,
            measure=measure,
            fingerprints={
                "data": material.fingerprint,
                "teachers": digest([hash_of_weights(teacher.model) for teacher in teachers]),
            },
            overwrite=overwrite,
            display=shown,
            workers=workers,
            summary=[material.summary, _describe(recipe, teachers), describe_model(recipe, model)],
        )
        return outcome, reached(out, outcome, {"examples": len(material.held_out)})


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


def _served(recipe: DistillationRecipe, pupil: Pupil) -> ServedTeacher | None:
    """Return the teacher behind an endpoint, if that is what a recipe names.

    Raises:
        InputError: settings that need more of a teacher than its likeliest tokens.
    """
    options = recipe.objective
    address = next((name for name in options.teachers if is_served(name)), None)
    if address is None:
        return None
    likeliest = f"{address} tells the likeliest tokens"
    for found, message in (
        (not isinstance(options.cache, int), f"cache: {likeliest}; expected how many to keep, such as 20"),
        (len(options.teachers) > 1, f"teachers: {likeliest} alone; expected no others beside it"),
        (options.temperature != 1, f"temperature: {likeliest} as they are; expected 1"),
    ):
        if found:
            raise InputError(f"objective.{message}")
    if not isinstance(pupil.reading, CausalReading):
        raise InputError(f"objective.teachers: {address} reads from left to right; expected such a student, as GPT")
    assert isinstance(options.cache, int)
    return ServedTeacher(address, pupil.tokenizer, options.cache)


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


def _measurement(means: Mapping[str, float], examples: int) -> Measurement:
    metrics = {"divergence": means["soft"], "perplexity": math.exp(min(means["hard"], 700.0))}
    if "hidden" in means:
        metrics["hidden_distance"] = means["hidden"]
    return Measurement(means["nll"], examples, metrics, None)


def _describe(
    recipe: DistillationRecipe, teachers: Sequence[Teacher | MaskedTeacher], served: ServedTeacher | None = None
) -> str:
    options = recipe.objective
    sizes = [sum(parameter.numel() for parameter in teacher.model.parameters()) for teacher in teachers]
    named = ", ".join(f"{name} ({size:,} parameters)" for name, size in zip(options.teachers, sizes, strict=False))
    if served is not None:
        named = f"{served.name} at {served.root}, the {served.kept} likeliest tokens"
    several = f"{options.mean} mean of " if len(sizes) > 1 else ""
    kind = f"jsd {options.beta:g}" if options.divergence == "jsd" else f"{options.divergence} KL"
    own = options.on_policy
    more = "" if own is None else f"; {100 * own.share:g} % of the updates on the student's own responses"
    terms = options.terms
    weights = f"weight {options.weight:g}"
    if terms is not None:
        weights = f"weights {terms.soft:g}, of the truth {terms.hard:g}, of hidden states {terms.hidden:g}"
    return f"teachers   {several}{named}: {kind} at temperature {options.temperature:g}, {weights}{more}"
