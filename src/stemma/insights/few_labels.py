"""Soft targets make much of few examples (Hinton, Vinyals and Dean 2015, section 6)."""

import torch
from torch import Tensor

from stemma.evaluation.intervals import over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_sign, difference, values
from stemma.insights.digits import errors, fit, load_digits, logits_of, network
from stemma.insights.experiments import Column, Experiment, Job, Measures
from stemma.insights.workers import Report
from stemma.layers.soft_targets import soften


def work(job: Job, report: Report) -> Measures:
    """Train a student on few digits in each of the arm's ways; keep the best on held-out digits."""
    settings, digits, seed = job.settings, load_digits(job.seed), job.seed
    few = digits.train.chosen(torch.arange(settings["labels"]))
    teacher = fit(network(64, settings["teacher"], 10, seed), digits.train, steps=settings["steps"], seed=seed)
    tries, found = settings[job.arm], []
    for number, one in enumerate(tries, 1):
        report((job.name, "students", number, len(tries), {}))

        def targets(images: Tensor, temperature: float = one.get("temperature", 1.0)) -> Tensor:
            return soften(logits_of(teacher, images), temperature)

        student = fit(network(64, settings["student"], 10, seed), few, steps=settings["steps"], seed=seed,
                      rate=one.get("rate", 3e-3), teacher=targets if job.arm == "soft" else None,
                      temperature=one.get("temperature", 1.0))  # fmt: skip
        score = errors(logits_of(student, digits.held_out.images), digits.held_out.labels)
        found.append((score, errors(logits_of(student, digits.test.images), digits.test.labels)))
    return {
        "errors": min(found, key=lambda one: one[0])[1],
        "teacher": errors(logits_of(teacher, digits.test.images), digits.test.labels),
    }


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
