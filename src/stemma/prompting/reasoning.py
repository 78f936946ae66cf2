"""Ways to have questions answered in words: directly, or with reasoning before the answer (chain of thought).

direct     the model goes on with the question
few-shot   the same, where the solved examples have their reasoning        (Wei et al. 2022, section 2)
zero-shot  a sentence makes it reason, a second one makes it answer        (Kojima et al. 2022, section 3)
least      it names sub-questions, then answers these one after the other  (Zhou et al. 2023, section 2)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stemma.errors import InputError
from stemma.prompting.extraction import Kind
from stemma.prompting.models import Asked, Writing, Written
from stemma.prompting.task_files import Ours

Reasoning = Literal["direct", "few-shot", "zero-shot", "least-to-most"]
REASONINGS: tuple[Reasoning, ...] = ("direct", "few-shot", "zero-shot", "least-to-most")

# What makes a model answer after its reasoning (Kojima et al. 2022, appendix A.5).
_ANSWER_TRIGGERS: dict[Kind, str] = {
    "number": "Therefore, the answer (arabic numerals) is",
    "yes-no": "Therefore, the answer (Yes or No) is",
    "letters": "Therefore, the answer is",
    "text": "Therefore, the answer is",
}
_SUB_QUESTIONS = "To solve this problem, we need to answer these questions first, one a line:\n"
_MOST_SUB_QUESTIONS = 8


@dataclass(frozen=True)
class Reply:
    """What was written for a question: the text in which the answer stands, and what it took.

    Args:
        reasoning: what was written before. read, tokens: of all prompts and all that was written. cut: at its limit.
    """

    text: str
    reasoning: str
    read: int
    tokens: int
    log_probability: float
    cut: bool


def answer_trigger(ours: Ours) -> str:
    """Return what makes a model answer after its reasoning: the task's own, else that of its kind of answers."""
    if ours.answer_trigger is not None:
        return ours.answer_trigger
    if ours.answer == "choice":
        return f"Therefore, among {ours.choices[0]} through {ours.choices[-1]}, the answer is"
    return _ANSWER_TRIGGERS[ours.answer or "text"]


def replies(asked: Asked, prompts: Sequence[str], how: Writing, reasoning: Reasoning, ours: Ours) -> list[list[Reply]]:
    """Have questions answered; return `how.samples` replies to each prompt.

    Args:
        prompts: without the delimiter before the answer. how: of the reply itself; by "zero-shot" and "least-to-most"
            its length is the task's.
    """
    if reasoning in ("direct", "few-shot"):
        return [[_reply(one) for one in own] for own in asked.write(prompts, how)]
    if reasoning == "zero-shot":
        return _two_stages(asked, prompts, how, ours)
    if how.samples > 1:
        raise InputError("least-to-most answers sub-questions one after the other: no votes")
    return [[_least_to_most(asked, prompt, how, ours)] for prompt in prompts]


def _reply(written: Written) -> Reply:
    return Reply(written.text, "", written.read, written.tokens, written.log_probability, written.cut)


def _two_stages(asked: Asked, prompts: Sequence[str], how: Writing, ours: Ours) -> list[list[Reply]]:
    begun = [f"{prompt} {ours.trigger}" for prompt in prompts]
    thoughts = asked.write(begun, replace(how, most=ours.reasoning_tokens))
    # The blank before the line break is the published code's.
    second = [
        f"{start}{thought.text} \n{answer_trigger(ours)}"
        for start, own in zip(begun, thoughts, strict=True)
        for thought in own
    ]
    greedy = Writing(ours.answer_tokens, how.stop, seed=how.seed)
    answers = iter(asked.write(second, greedy))
    found = []
    for own in thoughts:
        both = [(thought, next(answers)[0]) for thought in own]
        found.append(
            [
                Reply(
                    answer.text,
                    thought.text,
                    thought.read + answer.read,
                    thought.tokens + answer.tokens,
                    thought.log_probability + answer.log_probability,
                    thought.cut,
                )
                for thought, answer in both
            ]
        )
    return found


def _least_to_most(asked: Asked, prompt: str, how: Writing, ours: Ours) -> Reply:
    """Have sub-questions named, then answer each behind those before; the question itself is the last."""
    ((named,),) = asked.write([f"{prompt} {_SUB_QUESTIONS}"], Writing(ours.reasoning_tokens, ["\n\n"], seed=how.seed))
    questions = [line.strip() for line in named.text.splitlines() if line.strip()][:_MOST_SUB_QUESTIONS]
    parts, text = [named], prompt
    for question in questions:
        text += f"\n{question}\n"
        ((answer,),) = asked.write([text], Writing(ours.reasoning_tokens, ["\n"], seed=how.seed))
        parts.append(answer)
        text += answer.text.strip()
    text += f"\n{answer_trigger(ours)}"
    ((last,),) = asked.write([text], Writing(ours.answer_tokens, how.stop, seed=how.seed))
    parts.append(last)
    return Reply(
        last.text,
        text[len(prompt) :],
        sum(part.read for part in parts),
        sum(part.tokens for part in parts),
        sum(part.log_probability for part in parts),
        any(part.cut for part in parts[:-1]),
    )
