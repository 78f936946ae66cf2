"""T5's sentinels <extra_id_0>, <extra_id_1>, ...: they stand for gaps in a source and name them in its target."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

SENTINELS = 100

_SENTINEL = re.compile(r"(<extra_id_\d+>)")


def prepare_tokenizer(tokenizer: "Tokenizer") -> "Tokenizer":
    """Return the tokenizer with T5's 100 sentinels: those it lacks are appended, <extra_id_0> last as in T5."""
    return tokenizer.with_special_tokens(*(f"<extra_id_{index}>" for index in reversed(range(SENTINELS))))


def sentinel_ids(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """Return the ids of <extra_id_0>, <extra_id_1>, ..., as many as the tokenizer has."""
    names = (f"<extra_id_{index}>" for index in range(SENTINELS))
    ids = (tokenizer.backend.token_to_id(name) for name in names)
    return tuple(index for index in ids if index is not None)


def encode_source(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Return a source's token ids, with the token that ends it; sentinels in the text are read as such.

    A tokenizer without sentinels reads their names like any other text.
    """
    ids = []
    for piece in _SENTINEL.split(text):
        sentinel = tokenizer.backend.token_to_id(piece) if _SENTINEL.fullmatch(piece) else None
        ids += tokenizer.encode(piece) if sentinel is None else [sentinel]
    return [*ids, tokenizer.separator]


def split_spans(target: Sequence[int], sentinels: Sequence[int], spans: int) -> list[list[int]]:
    """Return what a target has behind the first, second, ... of the sentinels: the fillings of a source's gaps.

    Args:
        target: token ids without the end. spans: number of gaps; one that the target does not name stays empty.
    """
    number = {sentinel: index for index, sentinel in enumerate(sentinels)}
    found: list[list[int]] = [[] for _ in range(spans)]
    current: list[int] = []  # what comes before any sentinel belongs to no gap
    for token in target:
        if token in number:
            index = number[token]
            current = found[index] if index < spans else []
        else:
            current.append(token)
    return found
