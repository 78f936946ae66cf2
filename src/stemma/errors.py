"""Errors that are told in one line, most of them the user's to mend, and the hint that helps to mend them."""

import difflib
from collections.abc import Iterable


class Diverged(Exception):
    """A training went wrong: its numbers are not finite, or a policy ran away. The last good checkpoint is intact."""


class InputError(Exception):
    """Bad input: one line saying what, where and what was expected. The command line exits with code 2."""


def closest(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the choice nearest in spelling to `word`, or "" if none is near."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
