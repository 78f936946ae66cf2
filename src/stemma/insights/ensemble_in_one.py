"""One network keeps most of what an ensemble gains (Hinton, Vinyals and Dean 2015, section 4)."""

import numpy as np
from torch import Tensor, nn

from stemma.evaluation.intervals import over_seeds
from stemma.insights.claims import Claim, Decision, Results, by_sign, values
from stemma.insights.digits import (
    best_of,
    errors,
    fit,
    jittered,
    load_digits,
    logits_of,
    network,
    shifted,
    shifted_errors,
)
from stemma.insights.experiments import Column, Experiment, Job, Measures
from stemma.insights.workers import Report
from stemma.layers.ensembles import soft_targets

KEPT = 0.8


def work(job: Job, report: Report) -> Measures:
    """Train the members, and one student of them in each of the ways; keep the best on held-out digits."""
    settings, digits, seed = job.settings, load_digits(job.seed), job.seed
    width, steps, members = settings["width"], settings["steps"], []
    for number in range(settings["members"]):
        report((job.name, "members", number, settings["members"], {}))
        own = 100 * seed + number
        members.append(fit(network(64, width, 10, own), digits.train, steps=steps, seed=own, augment=jittered))
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    wrong = []
    for move in moves:
        images = shifted(digits.test.images, *move)
        wrong.append(errors(soft_targets([logits_of(one, images) for one in members]), digits.test.labels))
    report((job.name, "students", 0, 0, {}))

    def train(temperature: float, weight: float) -> nn.Module:
        def targets(images: Tensor) -> Tensor:
            return soft_targets([logits_of(member, images) for member in members], temperature)

        return fit(network(64, width, 10, seed), digits.train, steps=steps, seed=seed, augment=jittered,
                   teacher=targets, temperature=temperature, weight=weight)  # fmt: skip

    student = best_of(settings["students"], train, lambda one: shifted_errors(one, digits.held_out))
    return {
        "single": float(np.mean([shifted_errors(one, digits.test) for one in members])),
        "ensemble": float(np.mean(wrong)),
        "student": shifted_errors(student, digits.test),
    }


def decide(results: Results) -> Decision:
    """Decide by how much of the ensemble's gain the student keeps beyond the share that is claimed."""

    def of(measure: str) -> list[float]:
        return values(results, "one", lambda m: m[measure])

    single, ensemble, student = of("single"), of("ensemble"), of("student")
    beyond = [one - last - KEPT * (one - all_) for one, all_, last in zip(single, ensemble, student, strict=True)]
    effect = over_seeds(beyond)
    gain = over_seeds([one - all_ for one, all_ in zip(single, ensemble, strict=True)])
    details = {
        "errors of one network": over_seeds(single),
        "errors of the ensemble": over_seeds(ensemble),
        "errors of the student": over_seeds(student),
    }
    if gain.low <= 0:
        return Decision("undecided", effect, "the ensemble is no better than its members", details)
    return Decision(by_sign(effect), effect, details=details)


EXPERIMENT = Experiment(
    arms={"one": "one network of an ensemble"},
    scales={
        "small": {
            "members": 5, "width": 64, "steps": 4000,
            "students": [{"temperature": t, "weight": w} for t, w in ((1.0, 1.0), (2.0, 1.0), (2.0, 0.5))],
        }
    },
    work=work,
    columns=(
        Column("errors on shifted digits: a member", "member", lambda m: m["single"], more=False),
        Column("the ensemble", "ensemble", lambda m: m["ensemble"], more=False),
        Column("the student", "student", lambda m: m["student"], more=False),
    ),
)  # fmt: skip

CLAIM = Claim(
    name="ensemble-in-one",
    source="Hinton, Vinyals and Dean 2015, section 4 (speech: 58.9 %, ten models 61.1 %, one distilled 60.8 %)",
    hypothesis="one network that learns the mean of an ensemble's probabilities keeps more than 80 % of what the "
    "ensemble gains",
    varied="who answers: a member, the ensemble, or one student of the same size",
    controlled="digits (shifted by up to a pixel), network, steps of each network, seeds; the student is the best of "
    "three settings on held-out digits, the members have one",
    decides="errors on digits shifted by up to a pixel: a member's minus the student's, less 80 % of a member's minus "
    "the ensemble's; reproduced if the interval lies above 0; undecided if the ensemble is no better than a member",
    decide=decide,
    experiment=EXPERIMENT,
)
