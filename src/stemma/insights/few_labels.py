"""Soft targets make much of few examples (Hinton, Vinyals and Dean 2015, section 6)."""

import torch
from torch import Tensor, nn

from stemma.evaluation.intervals import over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_sign, difference, values
from stemma.insights.digits import Examples, best_of, errors, fit, load_digits, logits_of, network
from stemma.insights.experiments import Column, Experiment, Job, Measures
from stemma.insights.workers import Report
from stemma.layers.soft_targets import soften


def work(job: Job, report: Report) -> Measures:
    """Train a student on few digits in each of the arm's ways; keep the best on held-out digits."""
    settings, digits, seed = job.settings, load_digits(job.seed), job.seed
    few = digits.train.chosen(torch.arange(settings["labels"]))
    teacher = fit(network(64, settings["teacher"], 10, seed), digits.train, steps=settings["steps"], seed=seed)
    report((job.name, "students", 0, 0, {}))

    def train(temperature: float = 1.0, rate: float = 3e-3) -> nn.Module:
        def targets(images: Tensor) -> Tensor:
            return soften(logits_of(teacher, images), temperature)

        return fit(network(64, settings["student"], 10, seed), few, steps=settings["steps"], seed=seed,
                   teacher=targets if job.arm == "soft" else None, temperature=temperature, rate=rate)  # fmt: skip

    def wrong(model: nn.Module, examples: Examples) -> int:
        return errors(logits_of(model, examples.images), examples.labels)

    student = best_of(settings[job.arm], train, lambda one: wrong(one, digits.held_out))
    return {"errors": wrong(student, digits.test), "teacher": wrong(teacher, digits.test)}


def decide(results: Results) -> Decision:
    """Decide by errors on the test, if the teacher makes fewer than the student of labels."""
    effect = difference(results, "hard", "soft", lambda m: m["errors"])
    ours, theirs = values(results, "hard", lambda m: m["errors"]), values(results, "hard", lambda m: m["teacher"])
    details = {"errors of the teacher, of all labels": over_seeds(theirs)}
    if any(one <= other for one, other in zip(ours, theirs, strict=True)):
        return Decision("undecided", effect, "the teacher is no better than a student of labels", details)
    return Decision(by_sign(effect), effect, details=details)


EXPERIMENT = Experiment(
    arms={"hard": "labels", "soft": "soft targets"},
    scales={
        "small": {
            "labels": 100, "teacher": 200, "student": 64, "steps": 1000,
            "hard": [{"rate": rate} for rate in (1e-3, 3e-3, 1e-2)],
            "soft": [{"temperature": temperature} for temperature in (2.0, 4.0, 8.0)],
        }
    },
    work=work,
    columns=(Column("errors of 797", "errors", lambda m: m["errors"], more=False),),
)  # fmt: skip

CLAIM = Claim(
    name="few-labels",
    source="Hinton, Vinyals and Dean 2015, section 6 (speech, 3 % of the data: 44.5 % with labels, 57.0 % with soft "
    "targets, 58.9 % with all data)",
    hypothesis="of few examples a student learns more from soft targets than from labels",
    varied="what is learned of the examples: their labels, or the probabilities of a teacher that saw eight times as "
    "many",
    controlled="examples, network, steps, number of settings that are tried on held-out digits, seeds",
    decides="errors on the test: labels minus soft targets; reproduced if the interval lies above 0; undecided if the "
    "teacher makes no fewer errors than the labels' student",
    decide=decide,
    experiment=EXPERIMENT,
)
