"""Claims of papers as small controlled experiments: what is held equal, what varies, and the number that decides.

What decides is written down here before anything is run; seeds are 1, 2, 3, ... and never chosen. A claim whose
published evidence needs large models is echoed in direction only: no absolute number is compared.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from stemma.errors import InputError, closest
from stemma.evaluation.intervals import Interval, paired_over_seeds
from stemma.insights.experiments import Experiment
from stemma.insights.parts import Outcome

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """How a claim came out.

    Args:
        effect: the number that decides, with its interval over the seeds. premise: why the experiment cannot decide at
            all, where it cannot. details: further numbers, by what they are.
    """

    outcome: Outcome
    effect: Interval
    premise: str = ""
    details: Mapping[str, Interval] | None = None


@dataclass(frozen=True)
class Comparison:
    """Frameworks side by side, see `compare`.

    Args:
        arms: names of `arms.ARMS`. labels: whether fine-tuning is part of it. several_blanks, long_texts: see
            `plan.Plan`.
    """

    arms: tuple[str, ...]
    labels: bool = False
    several_blanks: int = 0
    long_texts: int = 0


@dataclass(frozen=True)
class Claim:
    """A claim.

    Args:
        source: paper, section. hypothesis: what it says. varied, controlled: of the experiment.
        decides: the number, and what it must be. decide: from the results.
        experiment: a comparison of frameworks, or one of its own.
    """

    name: str
    source: str
    hypothesis: str
    varied: str
    controlled: str
    decides: str
    decide: Callable[[Results], Decision]
    experiment: Comparison | Experiment


CONTROLLED = "tokens and their order, tokenizer, batch, steps, learning rate, parameters (within 2 %), seeds"


def claim_named(name: str, claims: Mapping[str, Claim]) -> Claim:
    """Return a claim by its name.

    Raises:
        InputError: no such claim.
    """
    if name not in claims:
        hint = closest(name, claims) or f", expected one of {', '.join(claims)}"
        raise InputError(f"no claim '{name}'{hint}")
    return claims[name]


def values(results: Results, arm: str, measure: Callable[[Mapping[str, Any]], float]) -> list[float]:
    """Return a measure of a framework for each seed."""
    return [measure(results["measures"][f"{arm}-{seed}"]) for seed in results["plan"]["seeds"]]


def difference(results: Results, ours: str, theirs: str, measure: Callable[[Mapping[str, Any]], float]) -> Interval:
    """Return the mean difference `ours - theirs` of a measure over the seeds, with its interval.

    Raises:
        InputError: fewer than two seeds.
    """
    return paired_over_seeds(values(results, ours, measure), values(results, theirs, measure))


def by_sign(effect: Interval, margin: float = 0.0) -> Outcome:
    """Return "reproduced" if the interval lies wholly above `margin`, "not reproduced" if wholly below it."""
    if effect.low > margin:
        return "reproduced"
    return "not reproduced" if effect.high < margin else "undecided"


def by_all(effects: Collection[Interval], margin: float = 0.0) -> tuple[Outcome, Interval]:
    """Return the outcome where every effect must lie above `margin`, and the effect that decides it.

    "reproduced" if all intervals lie wholly above, "not reproduced" if one lies wholly below.
    """
    below = [effect for effect in effects if effect.high < margin]
    decisive = min(below or effects, key=lambda effect: effect.low)
    return by_sign(decisive, margin), decisive
