"""Soft targets carry over what a teacher knows (Hinton, Vinyals and Dean 2015, section 3)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stemma.evaluation.intervals import over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_sign, difference, values
from stemma.insights.digits import best_of, errors, fit, jittered, load_digits, logits_of, network, shifted_errors
from stemma.insights.experiments import Column, Experiment, Job, Measures
from stemma.insights.workers import Report
from stemma.layers.soft_targets import soften


def work(job: Job, report: Report) -> Measures:
    """Train a student in each of the arm's ways; keep the one with the fewest errors on shifted held-out digits."""
    settings, digits, seed = job.settings, load_digits(job.seed), job.seed
    measures = {}
    if job.arm == "soft":
        teacher = fit(network(64, settings["teacher"], 10, seed), digits.train, steps=settings["steps"], seed=seed,
                      augment=jittered)  # fmt: skip
        measures["teacher"] = shifted_errors(teacher, digits.test)
    report((job.name, "students", 0, 0, {}))

    def train(temperature: float = 1.0, rate: float = 3e-3) -> nn.Module:
        def targets(images: Tensor) -> Tensor:
            return soften(logits_of(teacher, images), temperature)

        return fit(network(64, settings["student"], 10, seed), digits.train, steps=settings["steps"], seed=seed,
                   teacher=targets if job.arm == "soft" else None, temperature=temperature, rate=rate)  # fmt: skip

    student = best_of(settings[job.arm], train, lambda one: shifted_errors(one, digits.held_out))
    clean = errors(logits_of(student, digits.test.images), digits.test.labels)
    return {**measures, "shifted": shifted_errors(student, digits.test), "clean": clean}


def decide(results: Results) -> Decision:
    """Decide by errors on shifted digits, if the teacher makes fewer there than the student of labels."""

    def shifted(measures: Mapping[str, Any]) -> float:
        return float(measures["shifted"])

    effect = difference(results, "hard", "soft", shifted)
    premise = difference(results, "hard", "soft", lambda m: float(m.get("teacher", m["shifted"])))
    details = {
        "errors on shifted digits, the teacher": over_seeds(values(results, "soft", lambda m: m["teacher"])),
        "errors on digits as they are, labels minus soft targets": difference(
            results, "hard", "soft", lambda m: float(m["clean"])
        ),
    }
    if premise.low <= 0:
        return Decision("undecided", effect, "the teacher is no better than a student of labels", details)
    return Decision(by_sign(effect), effect, details=details)


EXPERIMENT = Experiment(
    arms={"hard": "labels", "soft": "soft targets"},
    scales={
        "small": {
            "teacher": 400, "student": 200, "steps": 1500,
            "hard": [{"rate": rate} for rate in (1e-3, 3e-3, 1e-2)],
            "soft": [{"temperature": temperature} for temperature in (2.0, 4.0, 8.0)],
        }
    },
    work=work,
    columns=(
        Column("errors on shifted digits, of 797", "shifted", lambda m: m["shifted"], more=False),
        Column("errors on digits as they are", "clean", lambda m: m["clean"], more=False),
    ),
)  # fmt: skip

CLAIM = Claim(
    name="soft-targets",
    source="Hinton, Vinyals and Dean 2015, section 3 (MNIST: 146 errors with labels, 74 with soft targets)",
    hypothesis="a student that learns the probabilities of a teacher who was trained on shifted digits can do what it "
    "never saw: read shifted digits",
    varied="what the student learns: the labels, or the teacher's probabilities",
    controlled="digits (never shifted), network, steps, number of settings that are tried on held-out digits, seeds",
    decides="errors on digits shifted by up to a pixel, the mean of nine shifts: labels minus soft targets; reproduced "
    "if the interval lies above 0; undecided if the teacher makes no fewer errors there than the labels' student",
    decide=decide,
    experiment=EXPERIMENT,
)
