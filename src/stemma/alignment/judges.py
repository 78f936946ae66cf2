"""Who says which of two responses is better: a reward, or a language model behind an OpenAI-compatible endpoint."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from stemma.alignment.conversations import Prompt
from stemma.alignment.rewards import Episode, Reward, scores_of
from stemma.errors import InputError
from stemma.inference.endpoint import ask_endpoint

Pair = tuple[Episode, Episode]

QUESTION = """\
Two answers to one prompt follow. Say which one is better: more helpful, more correct, nothing in it that was not asked.
Do not be influenced by their order or their length.

[Prompt]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Reply with one word: A, B, or tie."""

_TIE, _ANSWER = re.compile(r"\btie\b", re.IGNORECASE), re.compile(r"\b[AB]\b")  # "A tie" is one
_AT_ONCE = 8  # questions


@dataclass(frozen=True)
class Verdicts:
    """What a judge says of pairs.

    Args:
        wins: float [pairs], 1 where the first response is better, 0 where the second is, 0.5 where it is even.
        consistent: bool [pairs], whether it says the same when the two are swapped.
    """

    wins: np.ndarray
    consistent: np.ndarray


Judge = Callable[[Sequence[Pair]], Verdicts]


def judge_by_reward(reward: Reward) -> Judge:
    """Return a judge for whom the response with the larger reward is better. It sees one response at a time."""

    def judge(pairs: Sequence[Pair]) -> Verdicts:
        ours, theirs = (scores_of(reward, [pair[place] for pair in pairs]).numpy() for place in (0, 1))
        return Verdicts((1 + np.sign(ours - theirs)) / 2, np.ones(len(pairs), bool))

    return judge


def judge_by_endpoint(url: str, model: str, key: str | None = None) -> Judge:
    """Return a judge that asks a language model about each pair twice, the second time in the other order.

    Who wins in both orders wins; else it is even, so that a judge who always likes the first one says nothing.

    Args:
        url: of the endpoint, up to "/v1". key: default: the environment's OPENAI_API_KEY, if there is one.
    """

    def ask(first: Episode, second: Episode) -> float:
        text = QUESTION.format(prompt=_in_words(first.prompt), first=first.response, second=second.response)
        said = _complete(url, model, key, text)
        found = _TIE.search(said) or _ANSWER.search(said)
        if found is None:
            raise InputError(f"{url}: the judge said {said[:60]!r}, expected A, B or tie")
        return {"A": 1.0, "B": 0.0}.get(found[0], 0.5)

    def judge(pairs: Sequence[Pair]) -> Verdicts:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            straight = list(pool.map(lambda pair: ask(*pair), pairs))
            swapped = [1 - answer for answer in pool.map(lambda pair: ask(pair[1], pair[0]), pairs)]
        one, other = np.array(straight), np.array(swapped)
        return Verdicts(np.where(one == other, one, 0.5), one == other)

    return judge


def _in_words(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _complete(url: str, model: str, key: str | None, text: str) -> str:
    content = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
    answer = ask_endpoint(url, "chat/completions", content, key=key, who="judge")
    try:
        return str(answer["choices"][0]["message"]["content"])
    except (LookupError, TypeError) as error:
        raise InputError(f"{url}: no answer of a judge ({error}), expected an OpenAI-compatible endpoint") from error
