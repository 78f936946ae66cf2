"""Is one GLM competitive at understanding, filling blanks and writing? (Du et al. 2022, abstract.)"""

from collections.abc import Callable, Mapping
from typing import Any

from stemma.evaluation.intervals import Interval
from stemma.insights.claims import CONTROLLED, Claim, Comparison, Decision, Outcome, Results, difference, values

Measure = Callable[[Mapping[str, Any]], float]

# Task: (measure, whether more is better, frameworks made for it, how much worse still counts as competitive).
TASKS: dict[str, tuple[Measure, bool, tuple[str, ...], float]] = {
    "understanding: accuracy after fine-tuning": (
        lambda m: float(m["finetuned"]["test"]),
        True,
        ("gpt", "bert", "t5", "unilm"),
        0.03,
    ),
    "filling blanks: nats per token": (lambda m: m["blank_nll"], False, ("t5",), 0.1),
    "writing: bits per byte": (lambda m: m["bits_per_byte"], False, ("gpt", "unilm"), 0.1),
}


def decide(results: Results) -> Decision:
    """Decide by the task in which GLM is furthest behind the best framework that is made for it."""
    details: dict[str, Interval] = {}
    outcomes: list[Outcome] = []
    behind: list[tuple[float, Interval]] = []
    for task, (measure, more, others, margin) in TASKS.items():
        means = {arm: sum(values(results, arm, measure)) for arm in others}
        best = (max if more else min)(means, key=means.__getitem__)
        ours, theirs = ("glm", best) if more else (best, "glm")
        ahead = difference(results, ours, theirs, measure)  # above 0: GLM is better
        details[f"{task}: ahead of {best} (margin {margin:g})"] = ahead
        behind.append((ahead.estimate / margin, ahead))
        outcomes.append(
            "reproduced" if ahead.low > -margin else "not reproduced" if ahead.high < -margin else "undecided"
        )
    outcome: Outcome = "undecided"
    if "not reproduced" in outcomes:
        outcome = "not reproduced"
    elif set(outcomes) == {"reproduced"}:
        outcome = "reproduced"
    return Decision(outcome, min(behind, key=lambda pair: pair[0])[1], details=details)


CLAIM = Claim(
    name="glm-competitive",
    source='Du et al. 2022, "GLM: General Language Model Pretraining with Autoregressive Blank Infilling", abstract',
    hypothesis="one model pretrained by blank infilling is competitive with the framework made for each kind of task",
    varied="the framework",
    controlled=CONTROLLED,
    decides="in each of understanding, filling blanks and writing, how far GLM is ahead of the best framework made for "
    "it; reproduced if all three intervals lie above minus the margin (3 points of accuracy, 0.1 nats, 0.1 bits), not "
    "reproduced if one lies wholly below",
    decide=decide,
    experiment=Comparison(("gpt", "bert", "t5", "glm", "unilm"), labels=True),
)
