"""Patterns such as "question: {question} context: {context}", filled with texts as token ids, of which no text is lost
to the pattern when they are too long together."""

import re
import warnings
from collections.abc import Mapping, Sequence

from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError

FIELDS = ("text", "pair")  # of a classification
MASK = "[MASK]"
_FIELD = re.compile(r"\{(\w+)\}")


def check_pattern(pattern: str, fields: Sequence[str]) -> None:
    """Raise an InputError unless a pattern has each of the fields once, and no others."""
    if sorted(_FIELD.findall(pattern)) != sorted(fields):
        wanted = " and ".join(f"{{{field}}}" for field in fields)
        raise InputError(f"pattern {pattern!r}: expected {wanted} in it, once")


def fill_pattern(
    pattern: str, rows: Sequence[Mapping[str, str]], tokenizer: Tokenizer, room: int | None, *, mask: int | None = None
) -> list[list[int]]:
    """Return the token ids of the pattern filled with each row's texts, as the tokenizer writes the whole.

    Args:
        room: most tokens; the longest text of a row is cut at its end until it fits, with a UserWarning of how many
            were. None: any number.
        mask: the token that each [MASK] of the pattern is, the blank before it left out: that belongs to what stands
            in it. None: there are none.
    Raises:
        InputError: the pattern alone has more tokens than that.
    """
    sections = [pattern] if mask is None else pattern.split(MASK)
    texts = [[_filled(section, row) for section in sections] for row in rows]
    stripped = [text.rstrip(" ") if last < len(one) else text for one in texts for last, (text, _) in enumerate(one, 1)]
    following = iter(tokenizer.encode_with_offsets(stripped))
    filled, cut = [], 0
    for one in texts:
        tokens: list[int] = []
        free: list[list[int]] = [[]]  # of each text, where its tokens are
        for number, (_, spans) in enumerate(one):
            ids, offsets = next(following)
            tokens += [] if mask is None or not number else [mask]
            free += [[len(tokens) + i for i, (_, end) in enumerate(offsets) if a < end <= b] for a, b in spans]
            tokens += ids
        excess = 0 if room is None else max(len(tokens) - room, 0)
        if excess > sum(map(len, free)):
            alone = len(tokens) - sum(map(len, free))
            raise InputError(f"pattern {pattern!r}: {alone} tokens without its texts; expected at most {room}")
        cut += excess > 0
        dropped = {max(free, key=len).pop() for _ in range(excess)}
        filled.append([token for place, token in enumerate(tokens) if place not in dropped])
    if cut:
        warnings.warn(f"{cut:,} of {len(rows):,} inputs are cut to {room} tokens (data.longest)", stacklevel=2)
    return filled


def _filled(pattern: str, row: Mapping[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """Return the filled pattern, and where in it each text begins and ends."""
    text, spans = "", []
    for number, part in enumerate(_FIELD.split(pattern)):
        value = row[part] if number % 2 else part
        if number % 2:
            spans.append((len(text), len(text) + len(value)))
        text += value
    return text, spans
