"""A task with a true reward, there on any machine: say in one sentence what a function of Python's library does.

    prompt    profile.runctx(statement, globals, ...)
    response  Run statement under profiler, supplying your own globals and locals, optionally saving results.

Prompts are the qualified names of the standard library with their arguments, responses the first sentences of their
docstrings. Nothing is imported: the sources are parsed. What a response is worth is not learned but computed (see
`true_reward`), so that a reward model's over-optimisation can be seen.
"""

import ast
import re
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from stemma.alignment.conversations import Prompt
from stemma.alignment.rewards import Episode
from stemma.data.content_hashes import digest
from stemma.data.python_corpus import python_files

LEAST_WORDS, MOST_WORDS = 4, 24
SHOWN_ARGUMENTS = 2
HELD_OUT = 0.15  # of the modules
KNOWN_FROM = 3  # times that a word stands in the library's documentation
LABELLERS_AGREE = 0.73  # Ouyang et al. 2022, section 3.4: 72.6 %
PREFER_LONGER = 0.15  # of the labels; a bias that a reward model learns

_Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_WORD = re.compile(r"[A-Za-z][A-Za-z']*")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_STOP = re.compile(r"[.!?](?=\s|$)")


@dataclass(frozen=True)
class Item:
    """One name of the library and what it does."""

    module: str
    prompt: str
    response: str


def docstring_items() -> tuple[Item, ...]:
    """Return the pairs of the Python that runs this, in the order of its files; about four thousand."""
    return _library()[0]


def known_words() -> frozenset[str]:
    """Return the words, in lower case, that stand several times in the docstrings of the library."""
    return _library()[1]


def split_by_module(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Return the items to train on and those of modules that are held out, by a hash of the module's name."""
    held_out = {name for name in {item.module for item in items} if int(digest([name])[:8], 16) / 2**32 < HELD_OUT}
    return [item for item in items if item.module not in held_out], [item for item in items if item.module in held_out]


def true_reward(episodes: Sequence[Episode]) -> list[float]:
    """Return what each response is worth, 0 to 1.

    A fifth is for form: half for an end, half for exactly one sentence with a full stop. The rest is for a length
    of about ten words, words that the library's documentation knows, no repetition, and, most of all, for words about
    the prompt's name together with words that are not in it: the name echoed is worth no more than a stranger's
    sentence.
    """
    known = known_words()
    return [worth(_asked(episode.prompt), episode.response, episode.ended, known) for episode in episodes]


def _asked(prompt: Prompt) -> str:
    """Return what is asked: a text, or the last message of a conversation."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def worth(prompt: str, response: str, ended: bool, known: frozenset[str]) -> float:
    """Return `true_reward` of one response, given the words that are known, in lower case."""
    words = [word.lower() for word in _WORD.findall(response)]
    count = len(words)
    if not count:
        return 0.1 * ended
    stops = _STOP.findall(response.strip())
    form = 0.5 * ended + 0.5 * (stops == ["."] and response.strip().endswith("."))
    length = max(0.0, 1 - abs(count - 10) / 10)
    share = sum(word in known for word in words) / count
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    distinct = len(set(trigrams)) / max(len(trigrams), 1)
    stems = {_stem(word) for word in words}
    about = min(1.0, len(stems & _stems(prompt.partition("(")[0])) / 2)
    novel = min(1.0, len(stems - _stems(prompt)) / 4)
    enough = min(1.0, count / 6)
    return 0.2 * form + 0.15 * length + (0.15 * share**2 + 0.15 * distinct) * enough + 0.35 * about * novel


def rank_by_labeller(rewards: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return ranks, int [prompts, samples], 1 the best, as a person gives them who errs and likes long answers.

    Ranks are drawn by Plackett and Luce's model of true rewards, float [prompts, samples], scaled so that two people
    who err so agree about as often as labellers do. For some prompts all that counts is the length, int alike.
    """
    scale = _scale(rewards)
    noisy = scale * rewards + rng.gumbel(size=rewards.shape)
    longer = rng.random(len(rewards)) < PREFER_LONGER
    utility = np.where(longer[:, None], lengths + 0.5 * rng.random(rewards.shape), noisy)
    return (-utility).argsort(axis=1).argsort(axis=1) + 1


def _scale(rewards: np.ndarray) -> float:
    """Return what rewards are multiplied by so that the better of two is preferred as often as labellers agree."""
    differences = np.abs(rewards[:, :, None] - rewards[:, None, :])[:, *np.triu_indices(rewards.shape[1], 1)]
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        agreement = float((1 / (1 + np.exp(-np.minimum(middle * differences, 500)))).mean())
        low, high = (middle, high) if agreement < LABELLERS_AGREE else (low, middle)
    return middle


@cache
def _library() -> tuple[tuple[Item, ...], frozenset[str]]:
    return read_library(python_files())


def read_library(paths: Iterable[Path]) -> tuple[tuple[Item, ...], frozenset[str]]:
    """Return the items that source files of the library give, and the words that are known from them."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Item] = {}
    counts: Counter[str] = Counter()
    for path in paths:
        name = path.relative_to(root)
        try:
            with tokenize.open(path) as file:
                tree = ast.parse(file.read())
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # templates and deliberately broken files
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | _Documented):
                counts.update(word.lower() for word in _WORD.findall(ast.get_docstring(node, clean=False) or ""))
        module = ".".join(name.with_suffix("").parts).removesuffix(".__init__")
        if "idlelib" in name.parts or any(part.startswith("_") for part in module.split(".")):
            continue
        for prompt, docstring in _described(tree, module):
            sentence = _first_sentence(docstring)
            if sentence is not None:
                found.setdefault(sentence, Item(module, prompt, sentence))
    return tuple(found.values()), frozenset(word for word, count in counts.items() if count >= KNOWN_FROM)


def _described(node: ast.AST, title: str) -> Iterator[tuple[str, str]]:
    """Yield prompt and docstring of every public class and function in a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Documented) and not child.name.startswith("_"):
            name = f"{title}.{child.name}"
            docstring = ast.get_docstring(child)
            if docstring:
                yield name + _arguments(child), docstring
            yield from _described(child, name)


def _arguments(node: _Documented) -> str:
    if isinstance(node, ast.ClassDef):
        return ""
    names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args] if argument.arg not in _BOUND]
    return f"({', '.join([*names[:SHOWN_ARGUMENTS], *['...'] * (len(names) > SHOWN_ARGUMENTS)])})"


_BOUND = ("self", "cls")


def _first_sentence(docstring: str) -> str | None:
    """Return the first sentence of a docstring on one line, None if it is none of the task's."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    end = _STOP.search(paragraph)
    if end is None or end[0] != ".":
        return None
    sentence = paragraph[: end.end()]
    fits = LEAST_WORDS <= len(_WORD.findall(sentence)) <= MOST_WORDS
    return sentence if fits and sentence.isascii() else None


def _stems(text: str) -> frozenset[str]:
    """Return the stems of the words of a name: it is split at dots, underscores and capitals."""
    return frozenset(_stem(part.lower()) for part in _PART.findall(text) if len(part) > 1)


def _stem(word: str) -> str:
    return word[:5]
