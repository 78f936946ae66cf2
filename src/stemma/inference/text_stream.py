"""Text from tokens as they come, ended by stop strings that may begin in one token and end in another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stemma.errors import InputError

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer


class TextStream:
    """The text of one generation: what `push` and `finish` return, joined, and kept in `text`.

    Text that may be the beginning of a stop string is held back until the next tokens decide.

    Args:
        stops: strings that end the text; neither they nor what follows them is part of it.
        before: the last tokens of the prompt: what some tokens read as depends on whether they are the first of a text.
    """

    def __init__(self, tokenizer: "Tokenizer", stops: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self._decoder = tokenizer.stream_decoder()
        for token in before:
            self._decoder.push(token)
        self._matcher = StopMatcher(stops)
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All text returned so far."""
        return "".join(self._pieces)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._matcher.matched

    def push(self, token: int) -> str:
        """Take the next token; return the text that is now certain."""
        return self._take(self._matcher.push(self._decoder.push(token)))

    def finish(self) -> str:
        """End the text; return what was held back."""
        return self._take(self._matcher.push(self._decoder.flush()) + self._matcher.finish())

    def _take(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece


class StopMatcher:
    """Passes text through up to the first stop string, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.matched = False

    def push(self, piece: str) -> str:
        """Take more text; return what can be passed on: all but the longest end that begins a stop string."""
        if self.matched or not piece:
            return ""
        text = self._held + piece
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stops if stop in text]
        if found:  # the one that is complete first, wherever the borders of the pieces are
            self.matched, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return what was held back: no more text comes, so no stop string begins there."""
        held, self._held = self._held, ""
        return held


def end_of_text(tokenizer: "Tokenizer") -> int | None:
    """Return the id that ends a text, None if there is none."""
    try:
        return tokenizer.separator
    except InputError:  # GPT-1's tokenizer has no such token
        return None


def beginning_of_text(tokenizer: "Tokenizer") -> int:
    """Return the id that a text without any other beginning begins with: bos, else what separates texts.

    Raises:
        InputError: there is none.
    """
    return tokenizer.separator if tokenizer.bos is None else tokenizer.bos


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
