"""Self-consistency: several ways to reason, and the answer that most of them come to (Wang et al. 2023)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Vote:
    """The answer with the most votes, None if nobody had one; whether another one had as many."""

    answer: str | None
    tied: bool


def vote(
    answers: Sequence[str | None],
    log_probabilities: Sequence[float],
    same: Callable[[str, str], bool],
    weights: Sequence[float] | None = None,
) -> Vote:
    """Count answers by their value; of two with as many votes the likelier one in sum wins, then the first.

    Args:
        answers: of the samples; those without one do not vote. log_probabilities: of the samples.
        same: whether two answers are one. weights: of the votes; default: each counts once.
    """
    groups: list[list[int]] = []
    for place, answer in enumerate(answers):
        if answer is None:
            continue
        own = next((group for group in groups if same(answers[group[0]] or "", answer)), None)
        if own is None:
            groups.append([place])
        else:
            own.append(place)
    if not groups:
        return Vote(None, False)
    votes = [sum(1.0 if weights is None else weights[place] for place in group) for group in groups]
    chance = [sum(log_probabilities[place] for place in group) for group in groups]
    best = max(range(len(groups)), key=lambda group: (votes[group], chance[group]))
    return Vote(answers[groups[best][0]], votes.count(votes[best]) > 1)
