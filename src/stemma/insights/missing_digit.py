"""A student knows a digit that it has never seen (Hinton, Vinyals and Dean 2015, section 3)."""

import torch
from torch import Tensor

from stemma.evaluation.intervals import over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_sign, difference, values
from stemma.insights.digits import Digits, errors, fit, load_digits, logits_of, network
from stemma.insights.experiments import Column, Experiment, Job, Measures
from stemma.insights.workers import Report
from stemma.layers.soft_targets import soften

MISSING = 3
MARGIN = 0.5


def work(job: Job, report: Report) -> Measures:
    """Train a student without one digit; then give that digit the bias with the fewest errors on held-out digits."""
    settings, digits, seed = job.settings, load_digits(job.seed), job.seed
    teacher = fit(network(64, settings["teacher"], 10, seed, settings["dropout"]), digits.train,
                  steps=settings["steps"], seed=seed)  # fmt: skip
    report((job.name, "student", 0, 1, {}))
    transfer = digits.train.chosen(digits.train.labels != MISSING)
    temperature = settings["temperature"]

    def targets(images: Tensor) -> Tensor:
        return soften(logits_of(teacher, images), temperature)

    student = fit(network(64, settings["student"], 10, seed), transfer, steps=settings["steps"], seed=seed,
                  teacher=targets if job.arm == "soft" else None, temperature=temperature)  # fmt: skip
    logits, held_out = logits_of(student, digits.test.images), logits_of(student, digits.held_out.images)
    biases = [0.1 * number for number in range(101)]
    bias = min(biases, key=lambda bias: errors(_biased(held_out, bias), digits.held_out.labels))
    return {
        "teacher": errors(logits_of(teacher, digits.test.images), digits.test.labels),
        "errors": errors(logits, digits.test.labels),
        "right": _right(logits, digits),
        "bias": bias,
        "errors_with_bias": errors(_biased(logits, bias), digits.test.labels),
        "right_with_bias": _right(_biased(logits, bias), digits),
    }


def _biased(logits: Tensor, bias: float) -> Tensor:
    return logits + bias * (torch.arange(10) == MISSING)


def _right(logits: Tensor, digits: Digits) -> float:
    """Return the share of the missing digit's test examples that are recognised."""
    asked = digits.test.labels == MISSING
    return float((logits[asked].argmax(1) == MISSING).double().mean())


def decide(results: Results) -> Decision:
    """Decide by the share of the missing digit that is recognised, against a student of labels."""
    effect = difference(results, "soft", "hard", lambda m: m["right_with_bias"])
    names = {
        "errors of the teacher": "teacher",
        "errors of the student, without the bias": "errors",
        "errors of the student, with the bias": "errors_with_bias",
        "share of threes recognised, without the bias": "right",
        "share of threes recognised, with the bias": "right_with_bias",
    }
    details = {name: over_seeds(values(results, "soft", lambda m, key=key: m[key])) for name, key in names.items()}  # type: ignore[misc]
    return Decision(by_sign(effect, MARGIN), effect, details=details)


EXPERIMENT = Experiment(
    arms={"hard": "labels", "soft": "soft targets"},
    scales={"small": {"teacher": 200, "dropout": 0.2, "student": 64, "temperature": 8.0, "steps": 1000}},
    work=work,
    columns=(
        Column("threes recognised, with the bias", "threes", lambda m: m["right_with_bias"]),
        Column("threes recognised, without it", "no bias", lambda m: m["right"]),
        Column("errors of 797, with the bias", "errors", lambda m: m["errors_with_bias"], more=False),
    ),
)

CLAIM = Claim(
    name="missing-digit",
    source="Hinton, Vinyals and Dean 2015, section 3 (MNIST without threes: 98.6 % of the test's threes recognised)",
    hypothesis="a student that has never seen a three recognises threes, because the teacher's probabilities say what "
    "other digits have of one",
    varied="what the student learns of the other nine digits: their labels, or the teacher's probabilities",
    controlled="digits, network, steps, how the bias of the missing digit is chosen (on held-out digits), seeds",
    decides=f"share of the test's threes that are recognised: soft targets minus labels; reproduced if the interval "
    f"lies above {MARGIN}, not reproduced if below",
    decide=decide,
    experiment=EXPERIMENT,
)
