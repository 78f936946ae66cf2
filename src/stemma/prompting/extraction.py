"""Answers in what a model wrote, and whether they are right.

Two rules, chosen explicitly. "robust" finds the answer and compares values: 7, 7.0 and $7 are one number. "published"
is what the literature's numbers were made with (Kojima et al. 2022, their code): the first match of a loose pattern,
compared as a string; it reads -5 in "10-5", and A in "Actually, C".
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from stemma.errors import InputError, closest

Kind = Literal["number", "choice", "yes-no", "letters", "text"]
KINDS: tuple[Kind, ...] = ("number", "choice", "yes-no", "letters", "text")
RULES = ("robust", "published")
TRIGGER = "The answer is"  # of solved examples with their reasoning

# A minus only where nothing stands before it that it would be taken from; commas only between thousands.
_NUMBER = re.compile(r"(?:(?<![\w)])-\$?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w)])-)?\.\d+", re.ASCII)
_FRACTION = re.compile(r"(-?\d+)\s*/\s*(\d+)", re.ASCII)
_LOOSE_NUMBER = re.compile(r"-?\d+\.?\d*", re.ASCII)
_YES, _NO = {"yes", "true"}, {"no", "false"}
_CLAUSE = re.compile(r"[.;!?\n]")
_TRIGGER = re.compile(r"\banswer(?:\s*\([^)]*\))?(?:\s+is\b|\s*:)\s*:?", re.IGNORECASE)


@dataclass(frozen=True)
class Rule:
    """How an answer is found in a text, and compared with the right one.

    Args:
        extract: returns the answer, None where there is none. same: whether two answers are one.
    """

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]

    def is_right(self, answer: str | None, gold: str) -> bool:
        """Return whether an answer is the right one; none is wrong."""
        return answer is not None and self.same(answer, gold)


def rule_named(
    name: str, kind: Kind, *, examples: bool = False, choices: str = "ABCDE", fractions: bool = False
) -> Rule:
    """Return a rule for answers of a kind.

    Args:
        name: "robust" or "published". examples: of "published": the prompt had solved examples, so that the answer
            stands behind "The answer is". choices: the letters to choose from. fractions: of "robust": a/b is a number.
    Raises:
        InputError: no such rule or kind.
    """
    if name not in RULES:
        raise InputError(f"no rule '{name}'{closest(name, RULES)}; expected robust or published")
    if kind not in KINDS:
        raise InputError(f"no kind of answer '{kind}'{closest(kind, KINDS)}; expected one of {', '.join(KINDS)}")
    if name == "published":
        return Rule(lambda text: _published(text, kind, examples, choices), lambda answer, gold: answer == gold.strip())
    if kind == "number":
        return Rule(lambda text: _number(text, fractions), same_number)
    if kind == "choice":
        return Rule(lambda text: _choice(text, choices), lambda answer, gold: answer == gold.strip().upper())
    if kind == "yes-no":
        return Rule(_yes_or_no, lambda answer, gold: answer == _yes_or_no(gold))
    if kind == "letters":
        return Rule(lambda text: re.sub(r"[\"'.\s]", "", _answer_part(text)) or None, _same_text)
    return Rule(lambda text: (_answer_part(text).strip().removesuffix(".").strip()) or None, _same_text)


def same_number(answer: str, gold: str) -> bool:
    """Return whether two texts say the same number, to 1e-9 relatively; two that are no numbers, the same text."""
    values = number_of(answer), number_of(gold)
    if values[0] is None or values[1] is None:
        return answer.strip() == gold.strip()
    return math.isclose(values[0], values[1], rel_tol=1e-9)


def number_of(text: str) -> Decimal | None:
    """Return the value of a number as people write it ("$1,234.50", "3/4"); None for anything else."""
    plain = re.sub(r"[,$€£%\s]", "", text).removesuffix(".")
    try:
        if found := _FRACTION.fullmatch(plain):
            return Decimal(found[1]) / Decimal(found[2])
        return Decimal(plain) if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", plain, re.ASCII) else None
    except (InvalidOperation, ZeroDivisionError):
        return None


def _answer_part(text: str) -> str:
    """Return what stands behind the last "answer is", or the whole."""
    ends = [found.end() for found in _TRIGGER.finditer(text)]
    return text[ends[-1] :] if ends else text


def _number(text: str, fractions: bool) -> str | None:
    part = _answer_part(text)
    if part is not text and (found := _first_number(part, fractions)):
        return found
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    pattern = re.compile(f"{_FRACTION.pattern}|{_NUMBER.pattern}", re.ASCII) if fractions else _NUMBER
    matches = [found[0] for found in pattern.finditer(lines[-1])]
    return matches[-1].replace("$", "") if matches else None


def _first_number(text: str, fractions: bool) -> str | None:
    found = (_FRACTION.search(text) if fractions else None) or _NUMBER.search(text)
    return found[0].replace("$", "") if found else None


def _choice(text: str, letters: str) -> str | None:
    part = _answer_part(text)
    # A letter in brackets, or as a word of its own: "a" is an article.
    found = re.search(rf"\(([{letters}{letters.lower()}])\)|\b([{letters}])\b(?!')", part)
    if found is None and len(part.strip()) <= 2:
        found = re.fullmatch(rf"\s*()([{letters.lower()}])[.)]?\s*", part)
    return (found[1] or found[2]).upper() if found else None


def _yes_or_no(text: str) -> str | None:
    for clause in _CLAUSE.split(_answer_part(text)):
        words = set(re.findall(r"[a-z]+", clause.lower()))
        says = [answer for answer, own in (("yes", _YES), ("no", _NO)) if words & own]
        if says:
            return says[0] if len(says) == 1 else None
    return None


def _same_text(answer: str, gold: str) -> bool:
    return answer.strip().casefold() == gold.strip().casefold()


def _published(text: str, kind: Kind, examples: bool, choices: str) -> str | None:
    parts = text.split(TRIGGER)
    behind = examples and len(parts) > 1
    part = parts[-1] if examples else text
    if kind == "number":
        found = _LOOSE_NUMBER.findall(part.replace(",", ""))
    elif kind == "choice":
        found = re.findall("|".join(choices), part)
    elif kind == "yes-no":
        words = re.sub("[\"'\n.:,]", " ", part.lower()).split(" ")
        found = [word for word in words if word in ("yes", "no")]
    elif kind == "letters":
        found = [re.sub("[\"'\n.\\s]", "", part)]
    else:
        found = [part.strip()]
    if not found:
        return None
    answer = found[0] if behind or not examples else found[-1]
    return answer.removesuffix(".")
