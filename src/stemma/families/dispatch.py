"""What depends on the family of a model: a choice by its class, and one way to say that there is none."""

from collections.abc import Mapping
from typing import Any, TypeVar

from stemma.errors import InputError

Choice = TypeVar("Choice")


def by_family(model: Any, choices: Mapping[type, Choice], cannot: str) -> Choice:
    """Return the choice of a model's class.

    Raises:
        InputError: there is none: "an LSTM cannot fill blanks: expected a BERT, T5 or GLM".
    """
    for kind, choice in choices.items():
        if isinstance(model, kind):
            return choice
    first, *others = (kind.__name__ for kind in choices)
    expected = " or ".join([", ".join([first, *others[:-1]]), *others[-1:]])
    raise InputError(f"{with_article(model)} {cannot}: expected {_article(first)} {expected}")


def with_article(model: Any) -> str:
    """Return a model's class as a sentence has it: "a GPT", "an LSTM"."""
    name = type(model).__name__
    return f"{_article(name)} {name}"


def _article(name: str) -> str:
    spelled = name[1:2].isupper()  # letter by letter: an "el"
    return "an" if name[0] in ("AEFHILMNORSX" if spelled else "AEIOU") else "a"
