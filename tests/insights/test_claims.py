"""How claims are decided, from results with known differences."""

from dataclasses import replace
from typing import Any

import pytest

from stemma.errors import InputError
from stemma.evaluation.intervals import Interval
from stemma.insights.arms import ARMS
from stemma.insights.claims import Comparison, by_all, by_sign, claim_named, difference
from stemma.insights.reproduce import CLAIMS, SCALES, description, trial_of


def results(**arms: list[dict[str, Any]]) -> dict[str, Any]:
    """Return results with the given measures of each arm's seeds 1, 2, ...; "_" in names stands for "-"."""
    seeds = list(range(1, 1 + len(next(iter(arms.values())))))
    pairs = [(arm.replace("_", "-"), seed, found[seed - 1]) for arm, found in arms.items() for seed in seeds]
    measures = {f"{arm}-{seed}": measured for arm, seed, measured in pairs}
    return {"plan": {"seeds": seeds}, "measures": measures}


def blanks(*values: float) -> list[dict[str, Any]]:
    names = ("all_orders_nll", "text_order_nll", "blank_nll", "exact_match", "bits_per_byte")
    return [dict.fromkeys(names, value) for value in values]


def accuracies(*values: float, **more: float) -> list[dict[str, Any]]:
    return [{"finetuned": {"test": value, "majority": 0.2}, **more} for value in values]


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        (Interval(0.2, 0.1, 0.3), "reproduced"),
        (Interval(-0.2, -0.3, -0.1), "not reproduced"),
        (Interval(0.0, -0.1, 0.1), "undecided"),
    ],
)
def test_the_interval_decides(interval: Interval, outcome: str) -> None:
    assert by_sign(interval) == outcome


def test_differences_are_paired() -> None:
    found = difference(results(a=blanks(1.0, 5.0, 9.0), b=blanks(0.5, 4.5, 8.4)), "a", "b", lambda m: m["blank_nll"])
    assert found.estimate == pytest.approx((0.5 + 0.5 + 0.6) / 3)
    assert found.low > 0.3  # far narrower than the spread of either


@pytest.mark.parametrize("name, arm", [("glm-shuffling", "glm_in_order"), ("glm-positions", "glm_one_position")])
@pytest.mark.parametrize(
    ("ablation", "outcome"),
    [((5.0, 5.1, 5.0), "reproduced"), ((3.9, 4.0, 3.9), "not reproduced"), ((4.6, 4.0, 4.5), "undecided")],
)
def test_an_ablation_that_is_worse_reproduces_the_claim(
    name: str, arm: str, ablation: tuple[float, ...], outcome: str
) -> None:
    found = CLAIMS[name].decide(results(glm=blanks(4.5, 4.5, 4.4), **{arm: blanks(*ablation)}))
    assert found.outcome == outcome
    assert found.effect.estimate == pytest.approx(sum(ablation) / 3 - 13.4 / 3)


def test_encoder_decoders_are_decided_only_above_chance() -> None:
    decide = CLAIMS["encoder-decoder-parameters"].decide
    better = results(
        bert=accuracies(0.5, 0.5, 0.5), glm=accuracies(0.6, 0.61, 0.62), t5=accuracies(0.4, 0.4, 0.42),
        t5_twice=accuracies(0.5, 0.5, 0.5),
    )  # fmt: skip
    assert decide(better).outcome == "reproduced"
    chance = results(
        bert=accuracies(0.2, 0.2, 0.2), glm=accuracies(0.2, 0.2, 0.19), t5=accuracies(0.1, 0.1, 0.1),
        t5_twice=accuracies(0.1, 0.1, 0.1),
    )  # fmt: skip
    found = decide(chance)
    assert found.outcome == "undecided" and "most frequent class (0.200)" in found.premise


def competitors(glm: float, **others: float) -> dict[str, Any]:
    """Return results in which frameworks have an accuracy, and all the same blanks and bits but for GLM's bits."""
    arms = {
        arm: accuracies(*(others.get(arm, 0.5) + 0.001 * i for i in range(3)), blank_nll=4.0, bits_per_byte=2.0)
        for arm in ("gpt", "bert", "t5", "unilm")
    }
    arms["glm"] = accuracies(*(0.5 + 0.001 * i for i in range(3)), blank_nll=4.0, bits_per_byte=glm)
    return results(**arms)


def test_competitive_means_within_the_margin_in_every_task() -> None:
    decide = CLAIMS["glm-competitive"].decide
    assert decide(competitors(2.05)).outcome == "reproduced"
    assert decide(competitors(2.3)).outcome == "not reproduced"  # too many bits
    assert decide(competitors(2.05, bert=0.6)).outcome == "not reproduced"  # ten points behind
    assert decide(competitors(2.3)).effect.estimate == pytest.approx(-0.3)


def test_an_unknown_claim_names_the_nearest() -> None:
    with pytest.raises(InputError, match="glm-shuffling"):
        claim_named("glm-shufling", CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))
def test_every_claim_says_what_it_is(claim: Any) -> None:
    text = description(claim)
    assert claim.name in text and claim.hypothesis in text and claim.decides in text and claim.source in text
    trial = trial_of(claim, seeds=2)
    assert list(trial.board.labels) == list(claim.experiment.arms) and trial.board.seeds == (1, 2)
    if isinstance(claim.experiment, Comparison):
        assert all(arm in ARMS for arm in claim.experiment.arms)
        assert trial.plan is not None and (trial.plan.labels is not None) == claim.experiment.labels


def test_what_the_user_gives_is_in_the_plan() -> None:
    trial = trial_of(CLAIMS["glm-shuffling"], seeds=3, scale="medium", given={"steps": 7, "text": "my.txt"})
    assert trial.plan is not None and trial.plan.seeds == (1, 2, 3) and trial.plan.text == "my.txt"
    assert trial.plan.scale == replace(SCALES["medium"], steps=7)


def test_one_seed_decides_nothing() -> None:
    with pytest.raises(InputError, match="2 or more"):
        trial_of(CLAIMS["glm-shuffling"], seeds=1)


def test_an_unknown_scale() -> None:
    with pytest.raises(InputError, match="--scale huge: expected one of small, medium, paper"):
        trial_of(CLAIMS["glm-shuffling"], seeds=2, scale="huge")


def test_claims_about_fine_tuning_need_labels() -> None:
    with pytest.raises(InputError, match="--labels"):
        trial_of(CLAIMS["glm-competitive"], seeds=2, given={"text": "my.txt"})


@pytest.mark.parametrize(
    ("effects", "outcome", "decisive"),
    [([(1, 3), (2, 3)], "reproduced", (1, 3)), ([(1, 3), (0.2, 5)], "undecided", (0.2, 5)),
     ([(-9, 9), (-2, -1), (1, 2)], "not reproduced", (-2, -1))],
)  # fmt: skip
def test_all_of_several_effects_must_lie_above(
    effects: list[tuple[float, float]], outcome: str, decisive: tuple[float, float]
) -> None:
    intervals = [Interval((low + high) / 2, low, high) for low, high in effects]
    found, effect = by_all(intervals, 0.5)
    assert found == outcome and (effect.low, effect.high) == decisive


def test_standard_input_is_refused() -> None:
    with pytest.raises(InputError, match="--text -: every training reads the text by itself"):
        trial_of(CLAIMS["glm-shuffling"], seeds=2, given={"text": "-"})
