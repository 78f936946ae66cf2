"""Mistral's claims: what is measured, by closed forms; and how the claims decide."""

from typing import Any

import pytest
import torch

from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.insights import mixture_of_experts, rolling_cache, sliding_window
from stemma.insights.arms import ARMS, Scale, configurations, count_parameters
from stemma.insights.measures import _through_a_rolling_cache, used_experts


def results(arms: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    seeds = list(range(1, len(next(iter(arms.values()))) + 1))
    measures = {f"{arm}-{seed}": row for arm, rows in arms.items() for seed, row in zip(seeds, rows, strict=True)}
    return {"plan": {"seeds": seeds, "arms": list(arms)}, "measures": measures}


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [((0.001, 0.002, 0.0), "reproduced"), ((0.1, 0.11, 0.12), "not reproduced"), ((0.0, 0.04, 0.02), "undecided")],
)
def test_the_window_is_decided_by_the_margin(differences: tuple[float, ...], outcome: str) -> None:
    share = {"share_of_pairs": 0.4, "share_of_cache": 0.25}
    found = results(
        {
            "mistral": [{"bits_per_byte": 2.0}] * 3,
            "mistral-window": [{"bits_per_byte": 2.0 + extra, **share} for extra in differences],
        }
    )
    decision = sliding_window.decide(found)
    assert decision.outcome == outcome and decision.effect.estimate == pytest.approx(sum(differences) / 3)


@pytest.mark.parametrize(
    ("largest", "bytes_20", "outcome"),
    [(1e-5, 100, "reproduced"), (2e-3, 100, "not reproduced"), (1e-5, 101, "not reproduced")],
)
def test_the_rolling_cache_is_decided_by_its_worst_token_and_its_bytes(
    largest: float, bytes_20: int, outcome: str
) -> None:
    row = {"rolling_nll": 3.0, "at_once_nll": 3.0, "cache_bytes_2": 100}
    rows = [{**row, "rolling_largest_difference": 1e-6, "cache_bytes_20": 100}]
    rows += [{**row, "rolling_largest_difference": largest, "cache_bytes_20": bytes_20}]
    assert rolling_cache.decide(results({"mistral-window": rows})).outcome == outcome


def test_experts_are_decided_by_the_dense_model() -> None:
    found = results(
        {
            "mistral": [{"bits_per_byte": 2.2}, {"bits_per_byte": 2.3}],
            "mixtral": [{"bits_per_byte": 2.1, "used_experts": 7.0}, {"bits_per_byte": 2.2, "used_experts": 7.5}],
            "mixtral-uneven": [{"bits_per_byte": 2.1, "used_experts": 3.0}] * 2,
        }
    )
    decision = mixture_of_experts.decide(found)
    assert decision.outcome == "reproduced" and decision.effect.estimate == pytest.approx(0.1)


def test_active_parameters_are_equal() -> None:
    scale = Scale(2, 128, 4, 1024, 10)
    dense, window, sparse = configurations(
        [ARMS[name] for name in ("mistral", "mistral-window", "mixtral")], scale, 1024
    )
    count = count_parameters("mistral", dense)
    assert count == count_parameters("mistral", window) < 0.6 * count_parameters("mistral", sparse)
    networks = 3 * dense.hidden * dense.feed_forward
    met = 2 * 3 * sparse.hidden * sparse.feed_forward + 8 * sparse.hidden  # two experts, and the router
    assert abs(met - networks) * dense.layers < 0.02 * count


def test_used_experts_count_as_many_as_are_alike() -> None:
    even = torch.eye(4).repeat(5, 1) * 9
    assert used_experts([even], 1) == pytest.approx(4.0)
    assert used_experts([even[:, :] * 0 + torch.tensor([9.0, 8.0, 0.0, 0.0])], 2) == pytest.approx(2.0)
    assert used_experts([even, even * 0 + torch.tensor([9.0, 0.0, 0.0, 0.0])], 1) == pytest.approx(2.5)


def test_a_rolling_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        50, context=256, layers=2, hidden=16, heads=2, key_value_heads=1, feed_forward=32, windows=(6,)
    )
    model = Mistral(config).eval()
    texts = torch.randint(50, (3, 120)).tolist()
    monkeypatch.setattr("stemma.insights.measures.draw_passages", lambda split, count, length: texts[:count])
    with torch.inference_mode():
        found = _through_a_rolling_cache(model, None, 3)  # type: ignore[arg-type]
        logits = model(torch.tensor(texts)[:, :-1]).log_softmax(-1)
    expected = -logits.gather(-1, torch.tensor(texts)[:, 1:, None]).mean()
    assert found["at_once_nll"] == pytest.approx(float(expected), abs=1e-5)
    assert found["rolling_nll"] == pytest.approx(float(expected), abs=1e-5)
    assert 0 < found["rolling_largest_difference"] < 1e-4
    assert found["cache_bytes_2"] == found["cache_bytes_20"] == 2 * 2 * 6 * 8 * 4
