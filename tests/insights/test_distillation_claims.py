"""Claims about distillation on digits: what is chosen by what, how they are decided, and that they run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stemma import families
from stemma.insights import ensemble_in_one, few_labels, missing_digit, small_student, soft_targets, specialists
from stemma.insights.claims import Claim
from stemma.insights.digits import best_of, errors, fit, load_digits, logits_of, network
from stemma.insights.experiments import Job

SMALL = {
    soft_targets: {"teacher": 16, "student": 16, "steps": 5},
    few_labels: {"teacher": 16, "student": 16, "steps": 5},
    missing_digit: {"teacher": 16, "student": 16, "steps": 5},
    ensemble_in_one: {"members": 2, "width": 16, "steps": 5},
    specialists: {"groups": 2, "size": 2, "train": 60, "held_out": 40, "test": 40, "width": 8, "steps": 5,
                  "specialist_steps": 2},
}  # fmt: skip


def results(**arms: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of an experiment: of each arm the measures of seeds 1, 2, ..."""
    measures = {f"{arm}-{seed}": row for arm, rows in arms.items() for seed, row in enumerate(rows, 1)}
    return {"plan": {"seeds": list(range(1, len(next(iter(arms.values()))) + 1))}, "measures": measures}


def around(**means: float) -> list[dict[str, float]]:
    """Three seeds with these means."""
    return [{name: mean + 0.01 * (seed - 1) for name, mean in means.items()} for seed in range(3)]


def test_the_first_of_the_best_settings_is_chosen() -> None:
    models = {name: nn.Identity() for name in "abc"}
    wrong = {models["a"]: 2, models["b"]: 1, models["c"]: 1}
    chosen = best_of([{"name": name} for name in "abc"], lambda name: models[name], wrong.__getitem__)
    assert chosen is models["b"]


def test_a_network_learns_digits() -> None:
    digits = load_digits(1)
    assert [len(part) for part in (digits.train, digits.held_out, digits.test)] == [800, 200, 797]
    model = fit(network(64, 32, 10, 1), digits.train, steps=200, seed=1)
    assert errors(logits_of(model, digits.test.images), digits.test.labels) < 0.2 * 797


@pytest.mark.parametrize("module", SMALL)
def test_every_arm_runs_and_the_claim_is_decided(module: Any, tmp_path: Path) -> None:
    claim: Claim = module.CLAIM
    settings: Mapping[str, Any] = {**claim.experiment.scales["small"], **SMALL[module]}  # type: ignore[union-attr]
    arms = claim.experiment.arms
    measures: dict[str, list[Any]] = {
        arm: [module.work(Job(arm, seed, tmp_path, tmp_path, settings), lambda event: None) for seed in (1, 2)]
        for arm in arms
    }
    found = results(**measures)
    assert claim.decide(found).outcome in ("reproduced", "not reproduced", "undecided")
    for column in claim.experiment.columns:  # type: ignore[union-attr]
        assert all(isinstance(column.value(row), int | float) for rows in measures.values() for row in rows)


@pytest.mark.parametrize(
    ("soft", "teacher", "outcome"),
    [(360.0, 30.0, "reproduced"), (500.0, 30.0, "not reproduced"), (360.0, 490.0, "undecided")],
)
def test_soft_targets(soft: float, teacher: float, outcome: str) -> None:
    found = soft_targets.decide(
        results(hard=around(shifted=480, clean=20), soft=around(shifted=soft, clean=30, teacher=teacher))
    )
    assert (found.outcome, bool(found.premise)) == (outcome, teacher > 480)
    assert found.effect.estimate == pytest.approx(480 - soft)


@pytest.mark.parametrize(
    ("soft", "teacher", "outcome"),
    [(100.0, 30.0, "reproduced"), (130.0, 30.0, "not reproduced"), (100.0, 120.0, "undecided")],
)
def test_few_labels(soft: float, teacher: float, outcome: str) -> None:
    found = few_labels.decide(
        results(hard=around(errors=116, teacher=teacher), soft=around(errors=soft, teacher=teacher))
    )
    assert (found.outcome, found.effect.estimate) == (outcome, pytest.approx(116 - soft))


@pytest.mark.parametrize(
    ("soft", "outcome"), [(0.9, "reproduced"), (0.4, "not reproduced")]
)  # of threes recognised; the students of labels: none
def test_missing_digit(soft: float, outcome: str) -> None:
    rest = {"teacher": 60.0, "errors": 90.0, "errors_with_bias": 80.0, "right": 0.5}
    found = missing_digit.decide(
        results(hard=around(right_with_bias=0.0, **rest), soft=around(right_with_bias=soft, **rest))
    )
    assert (found.outcome, found.effect.estimate) == (outcome, pytest.approx(soft))


@pytest.mark.parametrize(
    ("student", "ensemble", "outcome"),
    [(81.0, 80.0, "reproduced"), (90.0, 80.0, "not reproduced"), (81.0, 101.0, "undecided")],
)
def test_the_student_keeps_four_fifths_of_the_gain(student: float, ensemble: float, outcome: str) -> None:
    found = ensemble_in_one.decide(results(one=around(single=100, ensemble=ensemble, student=student)))
    assert found.outcome == outcome
    assert found.effect.estimate == pytest.approx(100 - student - 0.8 * (100 - ensemble), abs=0.02)


def test_specialists_are_measured_against_equal_training() -> None:
    arms = {name: around(accuracy=value) for name, value in (("generalist", 0.5), ("longer", 0.7))}
    found = specialists.decide(results(**arms, specialists=around(accuracy=0.6)))
    assert found.outcome == "not reproduced" and found.effect.estimate == pytest.approx(-0.1)


@pytest.mark.slow
def test_small_students_run(tmp_path: Path) -> None:
    tiny = {"bytes": 60_000, "documents": 2, "vocabulary": 300, "size": [4, 16, 2], "steps": 4, "student_steps": 2}
    settings = {**small_student.EXPERIMENT.scales["small"], **tiny}
    shared = tmp_path / "shared"
    shared.mkdir()
    small_student.prepare(settings, shared)
    teacher = families.load(shared / "teacher")
    measures: dict[str, list[Any]] = {}
    for arm in small_student.EXPERIMENT.arms:
        folder = tmp_path / arm
        measures[arm] = [small_student.work(Job(arm, 1, folder, shared, settings), lambda event: None)]
        for size, layers in (("half", 2), ("quarter", 1)):
            begun = families.load(folder / f"{size}-student")
            assert len(begun.blocks) == layers
            same = torch.equal(begun.token_embedding.weight, teacher.token_embedding.weight)
            assert same == (arm != small_student.RANDOM)
    distilled, alternate = (measures[arm][0] for arm in (small_student.DISTILLED, small_student.ALTERNATE))
    assert distilled["loss_half"] != alternate["loss_half"]
    assert len(small_student.charts(results(**measures))[0].series) == 4


@pytest.mark.parametrize(
    ("distilled", "faster", "outcome"),
    [
        (2.4, 1.8, "reproduced"),
        (2.4, 1.1, "not reproduced"),  # no faster
        (2.58, 1.8, "not reproduced"),  # no better than from the teacher's layers without it
        (2.62, 1.8, "not reproduced"),  # closes less than half of the gap
    ],
)
def test_small_student(distilled: float, faster: float, outcome: str) -> None:
    def arm(loss: float, teacher: float = 2.2) -> list[dict[str, float]]:
        rows = around(loss_half=loss, faster_half=faster)
        return [{**row, "teacher_loss": teacher} for row in rows]

    alone = {"random": arm(3.0), "alternate": arm(2.5)}
    found = small_student.decide(results(**alone, distilled=arm(distilled)))
    assert found.outcome == outcome
    assert found.effect.estimate == pytest.approx(3.0 - distilled - 0.5 * (3.0 - 2.2))
    useless = small_student.decide(results(**alone, distilled=arm(distilled, teacher=3.1)))
    assert useless.outcome == "undecided" and "no better" in useless.premise
