"""The claim that facts sit in parameters: what the text states, and what decides."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stemma.data.tokenizers import load_tokenizer
from stemma.insights.experiments import Job
from stemma.insights.facts_in_parameters import CHANCE, CLAIM, charts, decide, prepare, work
from stemma.insights.stated_facts import EXPOSURES, OBJECTS, PHRASES, state_facts
from stemma.probing.common_vocabulary import common_vocabulary
from stemma.probing.facts import cloze


def test_facts_are_stated_as_often_as_said_and_never_as_they_are_asked() -> None:
    stated = state_facts(20, seed=3)
    times = Counter(stated.statements)
    for exposure, facts in stated.asked.items():
        assert len(facts.facts) == 20 * 3 / 5
        for fact in facts.facts:
            said = {phrase: times[cloze(phrase, fact.subject).replace("[MASK]", fact.object)] for phrase in _of(fact)}
            assert sum(said.values()) == exposure
            asked = next(phrase for phrase in said if (cloze(phrase, fact.subject),) == fact.sentences)
            assert said[asked] == 0
            assert cloze(asked, fact.subject).replace("[MASK]", fact.object) in stated.held_out
    assert sum(times.values()) == 12 * sum(EXPOSURES)
    assert not set(stated.held_out) & set(times) and len(stated.held_out) == 60
    named = {statement for statement in times for fact in stated.asked[0].facts if fact.subject in statement}
    assert len(named) > 0 and state_facts(20, seed=3) == stated != state_facts(20, seed=4)


def _of(fact: Any) -> tuple[str, ...]:
    return PHRASES[fact.relation]


def test_a_job_trains_and_asks(tmp_path: Path) -> None:
    settings = {
        "people": 10,
        "steps": 2,
        "scale": {"layers": 1, "hidden": 16, "heads": 2, "vocabulary": 560, "steps": 1, "batch": 2, "length": 32},
    }
    (tmp_path / "shared").mkdir()
    (tmp_path / "bert-1").mkdir()
    prepare(settings, tmp_path / "shared")
    events: list[Any] = []
    job = Job("bert", 1, tmp_path / "bert-1", tmp_path / "shared", settings)
    found = work(job, events.append)
    assert list(found) == [f"p_at_1_{exposure}" for exposure in EXPOSURES]
    assert all(0 <= share <= 1 for share in found.values())
    assert events[-1][1] == "asking" and (tmp_path / "bert-1/pretrained/model.safetensors").is_file()


def test_every_object_is_a_candidate(tmp_path: Path) -> None:
    """In the tokenizer of the claim's own settings; else chance would not be what it says."""
    prepare(CLAIM.experiment.settings("small", {}), tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    for objects in OBJECTS.values():
        words = objects.split()
        assert common_vocabulary([tokenizer], words) == words and 1 / len(words) == CHANCE


def results_of(bert: list[float], others: list[float]) -> dict[str, Any]:
    """Two seeds that differ by 0.01."""
    shares = {"bert": bert, "gpt": others, "glm": others}
    return {
        "plan": {"seeds": [1, 2]},
        "measures": {
            f"{arm}-{seed}": {
                f"p_at_1_{exposure}": share + seed / 100 * (exposure > 0)
                for exposure, share in zip(EXPOSURES, own, strict=True)
            }
            for arm, own in shares.items()
            for seed in (1, 2)
        },
    }


@pytest.mark.parametrize(
    ("bert", "outcome"),
    [
        ([CHANCE, 0.1, 0.3, 0.6, 0.9], "reproduced"),
        ([CHANCE, 0.06, 0.06, 0.06, 0.06], "not reproduced"),  # nothing is learned
        ([CHANCE, 0.9, 0.8, 0.7, 0.6], "not reproduced"),  # the more often the worse
        ([0.5, 0.6, 0.7, 0.8, 0.9], "not reproduced"),  # what was never stated is known
        ([CHANCE, 0.06, 0.06, 0.1, 0.15], "undecided"),
    ],
)
def test_what_decides(bert: list[float], outcome: str) -> None:
    found = decide(results_of(bert, [0.1] * 5))
    assert found.outcome == outcome
    assert found.effect.estimate == pytest.approx(bert[-1] - bert[0] + 0.015)
    assert found.details is not None
    assert found.details["GPT, facts stated 0 times"].estimate == pytest.approx(0.1)
    assert found.details["BERT minus GPT, facts stated 64 times"].estimate == pytest.approx(bert[-1] - 0.1)


def test_chart_has_a_line_for_each_model() -> None:
    (chart,) = charts(results_of([0.1, 0.2, 0.3, 0.4, 0.5], [0.1] * 5))
    assert [line.label for line in chart.series] == ["BERT", "GPT", "GLM"]
    assert chart.series[0].x == (1, 2, 5, 17, 65) and chart.series[0].y[0] == pytest.approx(0.1)
