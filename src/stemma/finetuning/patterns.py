"""Patterns such as "question: {question} context: {context}", filled with texts as token ids, of which no text is lost
to the pattern when they are too long together."""

import re
import warnings
from collections.abc import Mapping, Sequence

from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError

_FIELD = re.compile(r"( ?\{\w+\})")


def check_pattern(pattern: str, fields: Sequence[str]) -> None:
    """Raise an InputError unless a pattern has each of the fields once, and no others."""
    found = [part.strip(" {}") for part in _FIELD.findall(pattern)]
    if sorted(found) != sorted(fields):
        wanted = " and ".join(f"{{{field}}}" for field in fields)
        raise InputError(f"pattern {pattern!r}: expected {wanted} in it, once")


def fill_pattern(
    pattern: str, rows: Sequence[Mapping[str, str]], tokenizer: Tokenizer, room: int | None
) -> list[list[int]]:
    """Return the token ids of the pattern filled with each row's texts.

    Args:
        room: most tokens; the longest text of a row is cut at its end until it fits, with a UserWarning of how many
            were. None: any number.
    """
    parts = [part for part in _FIELD.split(pattern) if part]
    fields = [part.strip(" {}") if _FIELD.fullmatch(part) else None for part in parts]
    # The blank before a text belongs to its first word.
    texts = [
        part if field is None else (" " if part.startswith(" ") else "") + row[field]
        for row in rows
        for part, field in zip(parts, fields, strict=True)
    ]
    following = iter(tokenizer.encode_batch(texts))
    filled, cut = [], 0
    for _ in rows:
        pieces = [next(following) for _ in parts]
        if room is not None:
            free = [piece for piece, field in zip(pieces, fields, strict=True) if field is not None]
            excess = sum(map(len, pieces)) - room
            cut += excess > 0
            for _ in range(excess):
                max(free, key=len)[-1:] = []
        filled.append([token for piece in pieces for token in piece][:room])
    if cut:
        warnings.warn(f"{cut:,} of {len(rows):,} inputs are cut to {room} tokens (data.longest)", stacklevel=2)
    return filled
