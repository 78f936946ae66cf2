"""DeiT's claims: how they decide, and that an arm can be run."""

from typing import Any

import pytest

from stemma.insights import data_efficient, distillation_token
from stemma.insights.experiments import run_experiment
from stemma.insights.reproduce import section_of, trial_of


def token_results(none: float, soft: float, token: float, teacher: float = 0.95) -> dict[str, Any]:
    accuracies = {"none": none, "soft": soft, "hard": soft, "token": token, "two-class-tokens": none}
    measures = {
        f"{arm}-{seed}": {
            "accuracy": accuracy + 0.001 * index * (-1) ** seed,
            "teacher_accuracy": teacher,
            "token_cosine": 0.5,
            "input_cosine": 0.1,
            "token_cosines": [0.1, 0.5],
        }
        for index, (arm, accuracy) in enumerate(accuracies.items())
        for seed in (1, 2, 3)
    }
    return {"plan": {"seeds": [1, 2, 3], "arms": list(accuracies)}, "measures": measures}


@pytest.mark.parametrize(
    ("none", "soft", "token", "teacher", "outcome"),
    [
        (0.7, 0.8, 0.9, 0.95, "reproduced"),
        (0.7, 0.8, 0.75, 0.95, "not reproduced"),
        (0.8, 0.7, 0.9, 0.95, "not reproduced"),
        (0.7, 0.8, 0.8, 0.95, "undecided"),
        (0.7, 0.8, 0.9, 0.69, "undecided"),
    ],
)
def test_the_token_is_decided_by_both_steps(
    none: float, soft: float, token: float, teacher: float, outcome: str
) -> None:
    results = token_results(none, soft, token, teacher)
    decision = distillation_token.decide(results)
    assert decision.outcome == outcome and bool(decision.premise) == (teacher < none)
    assert decision.details is not None
    assert decision.details["cosine at the output, two class tokens"].estimate == pytest.approx(0.5)
    (chart,) = distillation_token.charts(results)
    assert [series.y for series in chart.series] == [(0.1, 0.5)] * 6


@pytest.mark.parametrize(("gain", "outcome"), [(0.1, "reproduced"), (-0.1, "not reproduced")])
def test_few_images_are_decided_by_the_mean(gain: float, outcome: str) -> None:
    measures = {
        f"{kind}-{images}-{seed}": {"accuracy": 0.5 + (gain * 100 / images if kind == "deit" else 0) + 0.001 * seed}
        for kind in ("deit", "plain")
        for images in data_efficient.IMAGES
        for seed in (1, 2)
    }
    results = {"plan": {"seeds": [1, 2]}, "measures": measures}
    decision = data_efficient.decide(results)
    assert decision.outcome == outcome
    assert decision.effect.estimate == pytest.approx(gain * (1 + 1 / 3 + 1 / 10) / 3)
    assert decision.details is not None
    assert decision.details["the same, fewest minus most images"].estimate == pytest.approx(gain * 0.9)
    (chart,) = data_efficient.charts(results)
    assert [series.x for series in chart.series] == [data_efficient.IMAGES] * 2


@pytest.mark.slow
@pytest.mark.parametrize("module", [distillation_token, data_efficient])
def test_experiments_run(module: Any, tmp_path: Any) -> None:
    experiment = module.CLAIM.experiment
    settings = {**experiment.settings("small", {"steps": 2}), "teacher_steps": 2}
    results = run_experiment(experiment, settings, (1, 2), tmp_path, workers=1)
    assert len(results["measures"]) == 2 * len(experiment.arms)
    assert all(0 <= measures["accuracy"] <= 1 for measures in results["measures"].values())
    trial = trial_of(module.CLAIM, seeds=2)
    assert section_of(trial, module.CLAIM.decide(results), results, tmp_path).title == module.CLAIM.name
