"""Is a token of its own, with the teacher's decisions as labels, the better way to distil into a Transformer? (Touvron
et al. 2021, section 5.2 and table 3.)"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma.evaluation.intervals import Interval, over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_all, difference, values
from stemma.insights.experiments import Column, Experiment, Job, Measures
from stemma.insights.image_arms import HEADS, held_out_of, teacher_accuracy, train_student, train_teacher
from stemma.insights.parts import Curves, Series
from stemma.insights.workers import Report

TEACHER = "teacher"
_TAUGHT = "distillation={{teacher: '{}', kind: {}, alpha: {}, temperature: 3.0}}"
# Weights as in the paper: half for hard labels, a tenth for soft ones (section 5.2).
_ARMS = {
    "none": ("no teacher", False, None, 0.0),
    "soft": ("soft labels, class token", False, "soft", 0.1),
    "hard": ("hard labels, class token", False, "hard", 0.5),
    "token": ("hard labels, distillation token", True, "hard", 0.5),
    "two-class-tokens": ("two class tokens, no teacher", True, None, 0.0),
}


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    """Train the teacher of all arms and seeds, on the images that they are trained on."""
    train_teacher(settings, settings["images"], shared / TEACHER)


def work(job: Job, report: Report) -> Measures:
    """Train an arm; return accuracies, the teacher's too, and the cosines of the tokens."""
    from stemma import families
    from stemma.training.image_accuracy import token_cosines

    _, distilled, kind, alpha = _ARMS[job.arm]
    settings, teacher = job.settings, job.shared / TEACHER
    given = [f"data.source={settings['source']}", f"data.limit={settings['images']}", f"model.distilled={distilled}"]
    if kind is not None:
        given.append(_TAUGHT.format(teacher, kind, alpha))
    measures = dict(train_student(job, report, given))
    measures["teacher_accuracy"] = teacher_accuracy(teacher)
    if distilled:
        test, preprocessing = held_out_of(job.folder / "run")
        cosines: Any = token_cosines(families.load(job.folder / "run"), test, preprocessing)  # type: ignore[arg-type]
        measures |= {"token_cosines": cosines, "input_cosine": cosines[0]}
    return measures


def decide(results: Results) -> Decision:
    """Decide by the published order's two steps: with the token above soft labels, these above none."""
    steps = {
        "accuracy, token minus soft": difference(results, "token", "soft", _accuracy),
        "accuracy, soft minus none": difference(results, "soft", "none", _accuracy),
    }
    details: dict[str, Interval] = {
        **steps,
        "accuracy, token minus none": difference(results, "token", "none", _accuracy),
        "accuracy, hard minus soft": difference(results, "hard", "soft", _accuracy),
    }
    teacher, alone = values(results, "none", lambda m: m["teacher_accuracy"]), values(results, "none", _accuracy)
    details["accuracy, teacher minus none"] = over_seeds([a - b for a, b in zip(teacher, alone, strict=True)])
    for arm, name in (("token", "class and distillation token"), ("two-class-tokens", "two class tokens")):
        details[f"cosine at the input, {name}"] = over_seeds(values(results, arm, lambda m: m["input_cosine"]))
        details[f"cosine at the output, {name}"] = over_seeds(values(results, arm, lambda m: m["token_cosine"]))
    outcome, effect = by_all(steps.values())
    if details["accuracy, teacher minus none"].low <= 0:
        premise = "the teacher is not surely better than a student without one, so there is nothing to be learned of it"
        return Decision("undecided", effect, premise, details)
    return Decision(outcome, effect, details=details)


def _accuracy(measures: Mapping[str, Any]) -> float:
    return float(measures["accuracy"])


def charts(results: Results) -> list[Curves]:
    """Draw how alike the two tokens are, block by block."""
    series = []
    for arm in ("token", "two-class-tokens"):
        for seed in results["plan"]["seeds"]:
            cosines = results["measures"][f"{arm}-{seed}"]["token_cosines"]
            series.append(Series(_ARMS[arm][0], list(range(len(cosines))), cosines))
    return [Curves(series, "blocks passed", "cosine of the two tokens", "how alike the two tokens are")]


_SMALL = {"source": "digits", "images": 400, "steps": 1600, "teacher_steps": 600}

CLAIM = Claim(
    name="distillation-token",
    source='Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention", '
    "table 3",
    hypothesis="a distillation token with the teacher's hard labels teaches more than soft labels, and these more than "
    "no teacher; its token stays another than the class token",
    varied="what is learned of the teacher, and by which token",
    controlled="images and their order, augmentation, steps, batch, learning rate, the teacher; the second token adds "
    "0.4 % of parameters",
    decides="held-out accuracy (both heads fused): token minus soft labels, and soft labels minus none; reproduced if "
    "both intervals lie above 0, not reproduced if one lies below. Premise: the teacher beats the student without one "
    "on the same images",
    decide=decide,
    experiment=Experiment(
        {name: label for name, (label, *_) in _ARMS.items()},
        {"small": _SMALL},
        work,
        (*HEADS, Column("accuracy of the teacher", "teacher", lambda m: m.get("teacher_accuracy"))),
        prepare,
        charts,
    ),
)
