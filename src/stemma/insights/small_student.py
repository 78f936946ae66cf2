"""Does a distilled language model keep most of its teacher's quality at a fraction of the cost? (Sanh et al. 2019)"""

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from stemma import families
from stemma.alignment.recipe import build_recipe
from stemma.data.tokenizers import load_tokenizer
from stemma.distillation.distil import distil
from stemma.distillation.recipe import DistillationRecipe
from stemma.distillation.students import make_student, smaller
from stemma.evaluation.intervals import over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_all, difference, values
from stemma.insights.docstring_policies import CONTEXT, pretrained
from stemma.insights.experiments import Column, Experiment, Job
from stemma.insights.lineage import TEXT, write_text
from stemma.insights.parts import Curves, Series
from stemma.insights.ptx_alignment_tax import HELD_OUT, loss_of, write_held_out
from stemma.insights.workers import Interrupted, Report, Reporter

KEPT, FASTER = 0.5, 1.25  # share of the gap that is closed; speed as a multiple of the teacher's
SIZES = {"half": 2, "quarter": 4}  # what the teacher's layers are divided by
TEACHER, RANDOM, ALTERNATE, DISTILLED = "teacher", "random", "alternate", "distilled"
_ROUNDS = 7


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    """Divide the text, and pretrain the teacher."""
    write_held_out(write_text(settings, shared), settings, shared)
    pretrained(settings, "size", shared / TEACHER, text=str(shared / TEXT))


def work(job: Job, report: Report) -> dict[str, Any]:
    """Train a student of each size, and measure its loss of unseen text and its speed beside the teacher's."""
    teacher, found = job.shared / TEACHER, dict[str, float]()
    for size, divisor in SIZES.items():
        student = job.folder / f"{size}-student"
        _start(job, {"layers": max(job.settings["size"][0] // divisor, 1)}, student)
        out = job.folder / size
        display = Reporter(job.name, report, f"{size} of the layers")
        outcome, _ = distil(_recipe(job, student, teacher), out, display=display)
        if outcome.reason == "interrupted":
            raise Interrupted
        found[f"loss_{size}"] = loss_of(out, job.shared / HELD_OUT)
    report((job.name, "measuring", 0, 0, {}))
    rates = speeds([teacher, *(job.folder / size for size in SIZES)])
    return {
        **found,
        **{f"faster_{size}": rate / rates[0] for size, rate in zip(SIZES, rates[1:], strict=True)},
        "teacher_loss": loss_of(teacher, job.shared / HELD_OUT),
        "teacher_rate": rates[0],
    }


def _start(job: Job, changes: Mapping[str, Any], out: Path) -> None:
    """Write what a student begins with: layers of the teacher, or random weights."""
    if out.is_dir():
        return
    if job.arm != RANDOM:
        make_student(str(job.shared / TEACHER), changes, out, job.seed)
        return
    teacher: Any = families.load(job.shared / TEACHER)
    # A width that is named is a change, too, so that nothing of the teacher is kept.
    student, kept = smaller(teacher, {**changes, "hidden": teacher.config.hidden}, job.seed)
    assert kept is None
    families.save(student, load_tokenizer(job.shared / TEACHER), out)


def _recipe(job: Job, student: Path, teacher: Path) -> DistillationRecipe:
    settings = job.settings
    given = {
        "model": str(student),
        "data": {"train": str(job.shared / TEXT), "text": "text", "dev": 0.02, "longest": CONTEXT},
        # Without weight the teacher changes nothing, and all arms read the same texts in the same order.
        "objective": {"teachers": [str(teacher)], "weight": settings["weight"] if job.arm == DISTILLED else 0.0},
        "training": {
            "batch": 8,
            "learning_rate": 3e-3,
            "schedule": {"name": "cosine", "warmup": 0.1, "final": 0.05},
        },
        "evaluation": {"every": settings["student_steps"]},
        "seed": job.seed,
    }
    return build_recipe(DistillationRecipe, "distill/tiny", given, [f"training.steps={settings['student_steps']}"])


def speeds(models: list[Path], batch: int = 8) -> list[float]:
    """Return how many tokens a second models read (the forward pass with the logits), each in turn; medians."""
    loaded: list[Any] = [families.load(model) for model in models]
    vocabulary = min(model.config.vocabulary for model in loaded)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(vocabulary, size=(batch, CONTEXT)))
    seconds: list[list[float]] = [[] for _ in loaded]
    with torch.inference_mode():
        for number in range(_ROUNDS + 1):
            for model, taken in zip(loaded, seconds, strict=True):
                start = time.perf_counter()
                model(tokens)
                if number:  # the first is for warming up
                    taken.append(time.perf_counter() - start)
    return [tokens.numel() / median(taken) for taken in seconds]


def decide(results: Results) -> Decision:
    """Decide by what the student with half of the layers keeps, by what the teacher adds, and by its speed."""

    def loss(measures: Mapping[str, Any]) -> float:
        return float(measures["loss_half"])

    teacher = values(results, DISTILLED, lambda measures: float(measures["teacher_loss"]))
    alone, taught = values(results, RANDOM, loss), values(results, DISTILLED, loss)
    gap = over_seeds([one - best for one, best in zip(alone, teacher, strict=True)])
    beyond = over_seeds(
        [one - own - KEPT * (one - best) for one, own, best in zip(alone, taught, teacher, strict=True)]
    )
    by_teaching = difference(results, ALTERNATE, DISTILLED, loss)
    faster = over_seeds([value - FASTER for value in values(results, DISTILLED, lambda m: float(m["faster_half"]))])
    outcome, _ = by_all([beyond, by_teaching, faster])
    details = {
        "loss of the student from random weights minus the teacher's": gap,
        "loss without minus with the teacher, both from its layers": by_teaching,
        "loss from random weights minus from the teacher's layers, both without it": difference(
            results, RANDOM, ALTERNATE, loss
        ),
        f"speed as a multiple of the teacher's, less {FASTER:g}": faster,
    }
    if gap.low <= 0:
        return Decision("undecided", beyond, "the teacher is no better than a student by itself", details)
    return Decision(outcome, beyond, details=details)


def charts(results: Results) -> list[Curves]:
    """Return the frontier: loss of unseen text against speed, means over the seeds; a point for each size."""

    def mean(arm: str, name: str) -> float:
        return float(np.mean(values(results, arm, lambda measures: measures[name])))

    rate, series = mean(DISTILLED, "teacher_rate"), list[Series]()
    for arm, label in EXPERIMENT.arms.items():
        speed, loss = ([mean(arm, f"{name}_{size}") for size in SIZES] for name in ("faster", "loss"))
        series.append(Series(label, [rate * one for one in speed], loss))
    series.append(Series("teacher", [rate], [mean(DISTILLED, "teacher_loss")]))
    return [
        Curves(
            series,
            x_label="tokens a second, forward pass",
            y_label="loss of unseen text, nats a token",
            caption="What is lost for what speed: students with a half and a quarter of the teacher's layers",
        )
    ]


def _settings(**changed: Any) -> Mapping[str, Any]:
    return {
        **{"text": "python", "bytes": 10_000_000, "documents": 40, "vocabulary": 1024, "size": [4, 128, 4]},
        **{"steps": 2000, "student_steps": 500, "weight": 0.5},
        **changed,
    }


EXPERIMENT = Experiment(
    arms={
        RANDOM: "on text alone, from random weights",
        ALTERNATE: "on text alone, from the teacher's layers",
        DISTILLED: "distilled, from the teacher's layers",
    },
    scales={
        "small": _settings(),
        "medium": _settings(vocabulary=4096, size=[8, 256, 8], steps=8000, student_steps=2000),
    },
    work=work,
    prepare=prepare,
    columns=(
        Column("loss of unseen text, half of the layers", "half", lambda m: m["loss_half"], more=False),
        Column("loss of unseen text, a quarter", "quarter", lambda m: m["loss_quarter"], more=False),
        Column("loss of unseen text, teacher", "teacher", lambda m: m["teacher_loss"], more=False),
        Column("speed as a multiple of the teacher's, half", "faster", lambda m: m["faster_half"]),
        Column("speed as a multiple of the teacher's, a quarter", "", lambda m: m["faster_quarter"]),
    ),
    charts=charts,
)

CLAIM = Claim(
    name="small-student",
    source='Sanh et al. 2019, "DistilBERT", sections 3 and 4 (half of the layers: 97 % of BERT on GLUE, 60 % faster)',
    hypothesis="a student that begins with every second layer of its teacher and learns from it keeps most of the "
    "teacher's quality at a fraction of the cost, more than by either alone",
    varied="what a student begins with, and whether the teacher teaches it",
    controlled="the teacher, text and its order, updates, batch, learning rate, size of the students, seeds",
    decides=f"loss of unseen text with half of the layers: from random weights without a teacher minus distilled, less "
    f"{KEPT:.0%} of the former minus the teacher's; reproduced if its interval lies above 0, as do those of the loss "
    f"without minus with the teacher, both from its layers, and of the speed of a forward pass as a multiple of the "
    f"teacher's less {FASTER:g}; not reproduced if one of the three lies below; undecided if the teacher is no better "
    "than the student from random weights",
    decide=decide,
    experiment=EXPERIMENT,
)
