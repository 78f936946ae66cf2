"""Prompts with solved examples (Brown et al. 2020, section 2: zero, one and few shots)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from stemma.errors import InputError
from stemma.prompting.extraction import TRIGGER
from stemma.prompting.models import Asked
from stemma.prompting.tasks import Question, Task


@dataclass(frozen=True)
class Prompt:
    """A question behind its solved examples; `shots`: their ids."""

    text: str
    shots: Sequence[str]


def draw_shots(task: Task, question: Question, count: int, seed: int) -> list[Question]:
    """Return solved examples for a question, never the question itself.

    They depend on the seed and the question alone; of a task with `sampler: first_n` they are the first ones.

    Raises:
        InputError: there are fewer.
    """
    pool = [example for example in task.examples if example.id != question.id]
    if len(pool) < count:
        raise InputError(f"{task.file.task}: {count} shots, and there are {len(pool)} examples to draw them from")
    if task.file.fewshot_config is not None and task.file.fewshot_config.sampler == "first_n":
        return pool[:count]
    return random.Random(f"{seed} {question.id}").sample(pool, count)


def prompt_of(
    task: Task, question: Question, shots: Sequence[Question], asked: Asked, *, reasoning: bool, room: str, more: int
) -> Prompt:
    """Return the prompt; examples that do not fit are left out from the left, whole.

    Args:
        reasoning: the examples are solved with their reasoning, and "The answer is ..." behind it (Wei et al. 2022).
        room: text that has to fit behind the prompt. more: tokens that have to, beside it.
    Raises:
        InputError: reasoning is wanted and an example has none.
    """
    file = task.file
    solved = []
    for shot in shots:
        answer = shot.target
        if reasoning:
            if shot.reasoning is None:
                raise InputError(f"{file.task}: reasoning of solved examples needs the key stemma.reasoning")
            answer = f"{shot.reasoning} {TRIGGER} {shot.gold}."
        solved.append(shot.text + file.target_delimiter + answer + file.fewshot_delimiter)
    used = len(solved)
    text = file.description + "".join(solved) + question.text
    while used and not asked.fits(text + room, more):
        used -= 1
        text = file.description + "".join(solved[len(solved) - used :]) + question.text
    return Prompt(text, [shot.id for shot in shots[len(shots) - used :]])
