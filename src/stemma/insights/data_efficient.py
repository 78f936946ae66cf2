"""Does a Transformer with DeiT's recipe and a teacher need fewer images? (Touvron et al. 2021, section 1: competitive
with ImageNet alone, where ViT asked for hundreds of millions of images.)"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma.evaluation.intervals import over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_sign, difference, values
from stemma.insights.experiments import Experiment, Job, Measures
from stemma.insights.image_arms import HEADS, train_student, train_teacher
from stemma.insights.parts import Curves, Series
from stemma.insights.workers import Report

IMAGES = (100, 300, 1000)
_KINDS = {"deit": "recipe and teacher", "plain": "neither"}


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    """Train a teacher on each number of images: it sees no more than its student."""
    for images in IMAGES:
        train_teacher(settings, images, shared / f"teacher-{images}")


def work(job: Job, report: Report) -> Measures:
    """Train an arm: named by its kind and its number of images."""
    kind, images = job.arm.rsplit("-", 1)
    given = [f"data.source={job.settings['source']}", f"data.limit={images}"]
    if kind == "deit":
        given.append(f"distillation={{teacher: '{job.shared / f'teacher-{images}'}', kind: hard, alpha: 0.5}}")
    else:
        given += ["augmentation=null", "model.distilled=false"]
    return train_student(job, report, given)


def decide(results: Results) -> Decision:
    """Decide by the difference in the mean over the numbers of images."""
    seeds = range(len(results["plan"]["seeds"]))
    gains = [
        [a - b for a, b in zip(*(values(results, f"{kind}-{images}", _accuracy) for kind in _KINDS), strict=True)]
        for images in IMAGES
    ]
    effect = over_seeds([sum(gain[seed] for gain in gains) / len(IMAGES) for seed in seeds])
    details = {
        f"accuracy with {images} images, with minus without": difference(
            results, f"deit-{images}", f"plain-{images}", _accuracy
        )
        for images in IMAGES
    }
    details["the same, fewest minus most images"] = over_seeds([gains[0][seed] - gains[-1][seed] for seed in seeds])
    return Decision(by_sign(effect), effect, details=details)


def _accuracy(measures: Mapping[str, Any]) -> float:
    return float(measures["accuracy"])


def charts(results: Results) -> list[Curves]:
    """Draw accuracy over the number of images."""
    series = []
    for kind, label in _KINDS.items():
        found = [over_seeds(values(results, f"{kind}-{images}", _accuracy)) for images in IMAGES]
        means, lows, highs = ([getattr(one, name) for one in found] for name in ("estimate", "low", "high"))
        series.append(Series(label, IMAGES, means, lows, highs))
    return [Curves(series, "training images", "held-out accuracy", "accuracy as training images fall", log_x=True)]


_SMALL: dict[str, Any] = {"source": "digits", "steps": 1600, "teacher_steps": 600}

CLAIM = Claim(
    name="data-efficient",
    source='Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention"',
    hypothesis="with augmentation and a convolutional teacher a Transformer learns from few images what it does not "
    "learn from them alone",
    varied="augmentation, label smoothing and a teacher trained on the same images: all of them or none; and the "
    "number of images",
    controlled="images, steps, batch, learning rate, model (the distillation token adds 0.4 % of parameters)",
    decides=f"held-out accuracy, with minus without, in the mean over {', '.join(map(str, IMAGES))} training images; "
    "reproduced if its interval lies above 0",
    decide=decide,
    experiment=Experiment(
        {f"{kind}-{images}": f"{label}, {images} images" for images in IMAGES for kind, label in _KINDS.items()},
        {"small": _SMALL},
        work,
        HEADS,
        prepare,
        charts,
    ),
)
