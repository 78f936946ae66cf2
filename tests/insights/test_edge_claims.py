"""The claims of edge probing: a whole job of each, and what decides."""

from pathlib import Path
from typing import Any

import pytest

from stemma.insights import contextual_beats_lexical, pipeline_order
from stemma.insights.edge_jobs import prepare
from stemma.insights.experiments import Job

SETTINGS = {"text": "python", "bytes": 20_000, "epochs": 1, "sentences": 8, "probe_epochs": 1}


def results(arms: dict[str, list[dict]]) -> dict[str, Any]:
    measures = {f"{arm}-{seed}": row for arm, rows in arms.items() for seed, row in enumerate(rows, 1)}
    return {"plan": {"seeds": [1, 2, 3]}, "measures": measures}


def scores(*gains: float) -> list[dict]:
    return [{"mix": 0.6 + gain, "top": 0.6, "lexical": 0.6, "convolution": 0.5, "random": 0.4} for gain in gains]


@pytest.mark.parametrize(
    ("gpt", "bert", "outcome"),
    [
        ((0.1, 0.11, 0.12), (0.2, 0.21, 0.22), "reproduced"),
        ((0.1, 0.11, 0.12), (-0.2, -0.21, -0.22), "not reproduced"),
        ((0.1, 0.11, 0.12), (0.2, -0.2, 0.1), "undecided"),
    ],
)
def test_both_models_must_gain(gpt: tuple, bert: tuple, outcome: str) -> None:
    decision = contextual_beats_lexical.decide(results({"gpt": scores(*gpt), "bert": scores(*bert)}))
    assert decision.outcome == outcome
    assert decision.effect.estimate == pytest.approx(min(sum(gpt), sum(bert)) / 3)
    assert decision.details is not None and len(decision.details) == 6


def layers(roles: float, scopes: float, gain: float) -> dict[str, Any]:
    return {
        task: {"expected": expected, "centre": 2.0, "cumulative": [0.5, 0.5 + gain]}
        for task, expected in (("roles", roles), ("scopes", scopes))
    }


@pytest.mark.parametrize(
    ("roles", "scopes", "gain", "outcome"),
    [(1.0, 2.0, 0.1, "reproduced"), (2.0, 1.0, 0.1, "not reproduced"), (1.0, 2.0, 0.01, "undecided")],
)
def test_an_order_needs_layers_that_gain(roles: float, scopes: float, gain: float, outcome: str) -> None:
    rows = [layers(roles + 0.01 * seed, scopes, gain) for seed in range(3)]
    decision = pipeline_order.decide(results({"bert": rows}))
    assert decision.outcome == outcome and bool(decision.premise) == (outcome == "undecided")
    assert decision.effect.estimate == pytest.approx(scopes - roles - 0.01)
    (bars,) = pipeline_order.charts(results({"bert": rows}))
    assert bars.groups == ("0", "1") and [value.estimate for value in bars.values[1]] == pytest.approx([0.5 + gain] * 2)


@pytest.mark.parametrize("module", [contextual_beats_lexical, pipeline_order])
def test_a_job_pretrains_and_probes(module: Any, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "bert-1").mkdir()
    prepare(SETTINGS, tmp_path / "shared")
    events: list[Any] = []
    found = module.work(Job("bert", 1, tmp_path / "bert-1", tmp_path / "shared", SETTINGS), events.append)
    assert (tmp_path / "bert-1/pretrained/model.safetensors").is_file() and events[-1][1].startswith("probing")
    for column in module.EXPERIMENT.columns:
        assert isinstance(column.value(found), float)
