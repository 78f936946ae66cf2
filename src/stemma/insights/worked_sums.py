"""Sums of several steps, with and without their working; every number is taken modulo ten, as on a dial.

    3 + 5 - 2 = The answer is 6 .
    3 + 5 - 2 = 3 - 2 = 1 ; 1 + 5 = 6 ; The answer is 6 .

The working takes the numbers behind the first in any order: there are several ways to the one answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.prompting.extraction import TRIGGER

MODULUS = 10
END = "."


@dataclass(frozen=True)
class Sum:
    """A first number, and what is added to it or taken from it, step by step: ("-", 2)."""

    first: int
    steps: tuple[tuple[str, int], ...]

    @property
    def question(self) -> str:
        """The sum, with the sign that asks for what it makes."""
        return " ".join([str(self.first), *(f"{sign} {number}" for sign, number in self.steps), "="])

    @property
    def answer(self) -> int:
        """What it makes."""
        made = self.first
        for step in self.steps:
            made = _after(made, step)
        return made

    @property
    def answered(self) -> str:
        """The question with its answer."""
        return f"{self.question} {TRIGGER} {self.answer} {END}"

    def worked(self, order: Sequence[int]) -> str:
        """Return the question with its working, the steps in an order (their places), and its answer."""
        so_far, working = self.first, []
        for place in order:
            sign, number = self.steps[place]
            made = _after(so_far, (sign, number))
            working.append(f"{so_far} {sign} {number} = {made} ;")
            so_far = made
        return " ".join([self.question, *working, f"{TRIGGER} {so_far} {END}"])


def _after(made: int, step: tuple[str, int]) -> int:
    sign, number = step
    return (made + number if sign == "+" else made - number) % MODULUS


def draw_sum(steps: int, rng: np.random.Generator) -> Sum:
    """Draw a sum of so many steps."""
    signs, numbers = rng.integers(2, size=steps).tolist(), rng.integers(MODULUS, size=steps + 1).tolist()
    return Sum(numbers[0], tuple(("+-"[sign], number) for sign, number in zip(signs, numbers[1:], strict=True)))


def draw_questions(most: int, each: int, rng: np.random.Generator) -> list[Sum]:
    """Draw so many different sums of each number of steps from 1 to `most`; of one step there are 200."""
    found: dict[Sum, None] = {}
    for steps in range(1, most + 1):
        wanted = len(found) + each
        while len(found) < wanted:
            found[draw_sum(steps, rng)] = None
    return list(found)


def draw_examples(count: int, most: int, asked: Sequence[Sum], rng: np.random.Generator) -> list[Sum]:
    """Draw sums of 1 to `most` steps, each number as likely, to learn from.

    None of two or more steps is one of those asked. The 200 of one step are the table that all others are made of.
    """
    unseen = {one for one in asked if len(one.steps) > 1}
    found: list[Sum] = []
    while len(found) < count:
        one = draw_sum(int(rng.integers(1, most + 1)), rng)
        if one not in unseen:
            found.append(one)
    return found
