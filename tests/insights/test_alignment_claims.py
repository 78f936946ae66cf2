"""The claims about alignment: how they are decided, what they measure, and that they run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stemma.alignment import docstring_task
from stemma.alignment.docstring_task import Item
from stemma.insights import alignment_beats_size, experiments, kl_reward_frontier, ptx_alignment_tax
from stemma.insights.docstring_policies import asked, continued, unseen, with_examples
from stemma.insights.experiments import Experiment, run_experiment

WORDS = ["dog", "cat", "fox", "film", "red", "blue", "green", "one", "two", "three", "four", "river", "market", "house"]


def results(**arms: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of an experiment: of each arm the measures of seeds 1, 2, ..."""
    measures = {f"{arm}-{seed}": row for arm, rows in arms.items() for seed, row in enumerate(rows, 1)}
    return {"plan": {"seeds": list(range(1, len(next(iter(arms.values()))) + 1))}, "measures": measures}


def sizes(aligned: float, few_shot: float) -> dict[str, Any]:
    """Three seeds; the aligned model wins the given shares of ten prompts against the larger one with examples."""
    rows = []
    for wins in (aligned, aligned, min(aligned + 0.1, 1.0)):
        count = round(10 * wins)
        rows.append([1.0] * count + [0.0] * (10 - count))
    small = [{"aligned": row, "demonstrated": [0.5] * 10, "few_shot": [0.4] * 10} for row in rows]
    return results(small=small, large=[{"pretrained": [0.1] * 10, "few_shot": [few_shot] * 10}] * 3)


def test_the_aligned_model_must_win_against_both() -> None:
    won = alignment_beats_size.decide(sizes(0.8, 0.5))
    assert won.outcome == "reproduced" and won.effect.estimate == pytest.approx(0.8333, abs=1e-4)
    assert won.details is not None and won.details["the larger one over the small one, both with examples"].low == 1
    assert won.details["demonstrated only, over the larger one with examples"].estimate == 0.5  # all even
    assert alignment_beats_size.decide(sizes(0.2, 0.5)).outcome == "not reproduced"
    assert alignment_beats_size.decide(sizes(0.5, 0.5)).outcome == "undecided"
    assert alignment_beats_size.win_rate([1, 2, 3, 4], [0, 2, 4, 5]) == 0.375


def frontier(free: float, middle: float, proxy: float = 2.0) -> dict[str, Any]:
    """Three evaluations each; the true reward begins at .5 and ends at `free` at no cost, at `middle` at cost .1."""

    def rows(last: float, learned: float) -> list[dict[str, list[float]]]:
        return [{"kl": [0, 1, 5], "proxy": [0, 1, learned], "true": [0.5, 0.6, last + e]} for e in (0.0, 0.01, -0.01)]

    ends = {"0": (free, proxy), "0.01": (0.4, 1.5), "0.03": (0.4, 1.2), "0.1": (middle, 1.0), "0.3": (0.55, 0.5)}
    return results(**{arm: rows(*end) for arm, end in ends.items()}, adaptive=rows(0.6, 1.0))


def test_a_reward_that_is_optimised_too_far() -> None:
    found = kl_reward_frontier.decide(frontier(0.3, 0.7))
    assert found.outcome == "reproduced" and found.effect.estimate == pytest.approx(0.4)
    assert found.details is not None
    assert found.details["true reward, best coefficient minus the beginning"].estimate == pytest.approx(0.2)
    assert found.details["learned reward, no cost minus best coefficient"].estimate == pytest.approx(1.0)
    assert found.details["divergence of the adaptive coefficient, as a multiple of its target"].estimate == 1.25
    assert kl_reward_frontier.decide(frontier(0.8, 0.7)).outcome == "not reproduced"  # it only rises
    assert kl_reward_frontier.decide(frontier(0.3, 0.7, proxy=0.9)).outcome == "not reproduced"  # none is fooled
    proxies, true = kl_reward_frontier.charts(frontier(0.3, 0.7))
    assert proxies.series[0].x == (0, 1, pytest.approx(5**0.5)) and true.series[0].y[-1] == pytest.approx(0.3)


def test_the_best_cost_is_chosen_by_the_other_seeds() -> None:
    """A cost that is best by luck in one seed is not taken in that seed."""
    found = frontier(0.3, 0.7)
    found["measures"]["0.01-1"]["true"][-1] = 5.0
    assert kl_reward_frontier.decide(found).effect.estimate == pytest.approx((0.4 + (0.4 - 0.3) * 2) / 3, abs=1e-2)


def test_what_an_evaluation_knows_of_the_divergence(library: Path) -> None:
    sample = {"prompt": "a.dog()", "response": "", "ended": True}
    metrics = [
        {"step": 0, "held_out_reward": 0.5, "held_out_samples": [sample, {**sample, "ended": False}]},
        {"step": 1, "kl": 0.0, "reward": 1.0},
        {"step": 2, "kl": 3.0, "reward": 1.0},
        {"step": 2, "held_out_reward": 0.7, "held_out_samples": [sample]},
    ]
    assert kl_reward_frontier.curve_of(metrics) == {"kl": [0.0], "proxy": [0.5], "true": [0.05]}


@pytest.mark.parametrize(
    ("ppo", "ptx", "reward", "outcome"),
    [(2.2, 2.02, 0.6, "reproduced"), (2.2, 2.1, 0.6, "not reproduced"), (2.2, 2.02, 0.4, "not reproduced"),
     (1.9, 1.9, 0.6, "undecided"), (2.02, 2.03, 0.6, "not reproduced"), (2.02, 2.02, 0.6, "undecided")],
)  # fmt: skip
def test_the_tax(ppo: float, ptx: float, reward: float, outcome: str) -> None:
    def rows(loss: float, reward: float) -> list[dict[str, float]]:
        return [{"start_loss": 2.0, "loss": loss + e, "reward": reward} for e in (0.0, 0.001, -0.001)]

    found = ptx_alignment_tax.decide(results(ppo=rows(ppo, 0.6), ptx=rows(ptx, reward)))
    assert found.outcome == outcome and found.effect.estimate == pytest.approx((ppo - ptx) / 2)
    assert bool(found.premise) == (ppo < 2)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The task of a small library, and a text; jobs are done in this process."""
    sentences = [f"Return the {word} that {other} sees in the {word}." for word in WORDS for other in WORDS[:3]]
    items = tuple(Item(f"m{n}", f"m{n}.{text.split()[2]}(x)", text) for n, text in enumerate(sentences))
    monkeypatch.setattr(docstring_task, "_library", lambda: (items, frozenset(["return", "the", "that"])))
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))

    def run(work: Any, jobs: Any, *, workers: int, on_event: Any, tick: Any) -> None:
        for job in jobs:
            work(job, on_event)

    monkeypatch.setattr(experiments, "run_jobs", run)
    rows = [{"text": f"{item.prompt}\n\n{item.response} " * 12} for item in items]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_prompts_of_the_same_names(library: Path) -> None:
    items = unseen(5)
    assert len(items) == len({item.module for item in items}) == 5
    assert asked(items)[0].prompt == [{"role": "user", "content": items[0].prompt}]
    assert continued(items)[0].prompt == f"{items[0].prompt}\n\n"
    *shots, last = str(with_examples(items, 1)[0].prompt).split("\n\n")
    assert last == f"{items[0].prompt}\n" and len(shots) == 3
    known = {item.prompt: item.response for item in docstring_task.docstring_items()}
    assert all(known[name] == response for name, response in (shot.split("\n") for shot in shots))
    assert not {shot.split("\n")[0] for shot in shots} & {item.prompt for item in unseen(100)}


TINY = {"vocabulary": 300, "steps": 4, "rollouts": 2, "prompts": 4}


def ran(experiment: Experiment, library: Path, **settings: Any) -> dict[str, Any]:
    given = {**experiment.scales["small"], **TINY, **settings, "text": str(library / "text.jsonl")}
    measures: dict[str, Any] = run_experiment(experiment, given, (1,), library / "out", workers=1)["measures"]
    return measures


@pytest.mark.slow
def test_sizes_are_compared(library: Path) -> None:
    found = ran(alignment_beats_size.EXPERIMENT, library, small=[1, 16, 2], large=[1, 32, 2])
    assert set(found["small-1"]) == {"pretrained", "few_shot", "demonstrated", "aligned"}
    assert all(len(rewards) == 4 and min(rewards) >= 0 for rewards in found["small-1"].values())
    assert set(found["large-1"]) == {"pretrained", "few_shot"}


@pytest.mark.slow
def test_fixed_and_adaptive_coefficients_have_curves(library: Path) -> None:
    arms = {"0.3": "fixed", kl_reward_frontier.ADAPTIVE: "adaptive"}
    found = ran(replace(kl_reward_frontier.EXPERIMENT, arms=arms), library, size=[1, 16, 2], every=1)
    assert set(found) == {"0.3-1", "adaptive-1"}
    for measures in found.values():
        assert [len(curve) for curve in measures.values()] == [2, 2, 2]
        assert measures["kl"][0] == 0 and max(measures["kl"]) > 0
    assert len({measures["true"][0] for measures in found.values()}) == 1  # all begin as the same policy


@pytest.mark.slow
def test_the_tax_is_measured_on_unseen_text(library: Path) -> None:
    settings = {"size": [1, 16, 2], "bytes": 4000, "documents": 10, "batch": 2, "length": 32, "rate": 1e-2}
    found = ran(ptx_alignment_tax.EXPERIMENT, library, **settings)
    assert found["ppo-1"]["start_loss"] == found["ptx-1"]["start_loss"] > 0
    assert found["ppo-1"]["loss"] != found["ptx-1"]["loss"]
    log = (library / "out" / "ptx-1" / "ppo" / "metrics.jsonl").read_text()
    assert "pretraining_loss" in log
    texts = [(library / "out" / "shared" / name).read_text().splitlines() for name in ("text.jsonl", "held_out.jsonl")]
    assert len(texts[1]) == 10 and not set(texts[0]) & set(texts[1])
