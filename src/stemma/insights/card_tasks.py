"""A family of small tasks: put cards into four classes by a rule that only examples tell.

    red tiny cube B green huge ring D blue tiny cone A ...

A task looks at one, two or all three attributes of a card, adds their places, and gives each of the four sums (modulo
four) a class of its own: 7 * 4! = 168 tasks. A document shows cards of one task with their classes, no card twice, so
that no class can be copied from an earlier card.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product

import numpy as np

ATTRIBUTES = (
    ("red", "green", "blue", "black"),
    ("tiny", "small", "large", "huge"),
    ("cube", "ball", "cone", "ring"),
)
CLASSES = ("A", "B", "C", "D")
CARDS = tuple(product(range(4), repeat=3))
CHANCE = 1 / len(CLASSES)


@dataclass(frozen=True)
class CardTask:
    """A task.

    Args:
        attributes: those that it looks at, of 0 to 2. classes: the class, 0 to 3, of each sum of their places modulo 4.
    """

    attributes: tuple[int, ...]
    classes: tuple[int, ...]

    def class_of(self, card: Sequence[int]) -> int:
        """Return the class of a card, given as the place of its value in each attribute."""
        return self.classes[sum(card[attribute] for attribute in self.attributes) % len(CLASSES)]


ALL_TASKS = tuple(
    CardTask(attributes, classes)
    for count in (1, 2, 3)
    for attributes in combinations(range(3), count)
    for classes in permutations(range(4))
)
_CLASS_OF = np.array([[task.class_of(card) for card in CARDS] for task in ALL_TASKS])  # [tasks, cards]


@dataclass(frozen=True)
class Documents:
    """Documents of cards with their classes: int64 [documents, cards] numbers of `CARDS` and of `CLASSES`."""

    cards: np.ndarray
    classes: np.ndarray

    @property
    def lines(self) -> list[str]:
        """The documents as text."""
        shown = [" ".join(words[place] for words, place in zip(ATTRIBUTES, card, strict=True)) for card in CARDS]
        return [
            " ".join(f"{shown[card]} {CLASSES[own]}" for card, own in zip(*row, strict=True))
            for row in zip(self.cards.tolist(), self.classes.tolist(), strict=True)
        ]


def divide_tasks(seed: int) -> tuple[list[int], list[int]]:
    """Return the numbers of tasks to learn from, and of others never seen: a quarter of those of each choice of
    attributes."""
    rng = np.random.default_rng([seed, 0])
    each = len(ALL_TASKS) // 7
    groups = [start + rng.permutation(each) for start in range(0, len(ALL_TASKS), each)]
    unseen = [int(number) for group in groups for number in group[: each // 4]]
    return [number for number in range(len(ALL_TASKS)) if number not in unseen], unseen


def draw_documents(tasks: Sequence[int], documents: int, cards: int, rng: np.random.Generator) -> Documents:
    """Draw documents of so many cards, each of a task drawn from those given by number."""
    task = rng.choice(np.array(tasks), documents)
    shown = rng.random((documents, len(CARDS))).argsort(1)[:, :cards]
    return Documents(shown, _CLASS_OF[task[:, None], shown])


def best_possible(documents: Documents) -> np.ndarray:
    """Return the probability that whoever knows the family, and the task no better than by the cards before, names the
    class of each card, float64 [documents, cards]: every task counts that agrees with all cards before."""
    said = _CLASS_OF[:, documents.cards]  # [tasks, documents, cards]
    agrees = said == documents.classes
    before = np.ones_like(agrees)
    before[..., 1:] = np.logical_and.accumulate(agrees, axis=-1)[..., :-1]
    votes = np.stack(
        [(before & (said == own)).sum(0) for own in range(len(CLASSES))], -1
    )  # [documents, cards, classes]
    best = votes == votes.max(-1, keepdims=True)
    right = np.take_along_axis(best, documents.classes[..., None], -1)[..., 0]
    return right / best.sum(-1)
