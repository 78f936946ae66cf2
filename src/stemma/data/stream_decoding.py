"""Text from token ids as they come, one at a time: never half a character, never a second look at what went before."""

import codecs
from collections.abc import Callable, Collection
from functools import cache
from typing import Protocol

from tokenizers import Tokenizer, decoders


class StreamDecoder(Protocol):
    """Turns a stream of ids to text: what `push` and the last `flush` return, joined, is `decode` of all the ids."""

    def push(self, token: int) -> str:
        """Take the next id and return the text that is newly complete, often "" within a character."""

    def flush(self) -> str:
        """End the stream and return what is left, an incomplete character as U+FFFD. The next push begins anew."""


def stream_decoder(backend: Tokenizer, skipped: Collection[int]) -> StreamDecoder:
    """A decoder for the tokens of `backend`, without those of the ids `skipped`."""
    if isinstance(backend.decoder, decoders.ByteLevel):
        return _ByteStream(backend, skipped)
    return _PieceStream(backend, skipped)


class _ByteStream:
    """Byte-level BPE: each token is a string of bytes, whatever its neighbours."""

    def __init__(self, backend: Tokenizer, skipped: Collection[int]) -> None:
        self._backend = backend
        self._skipped = skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        return self._utf8.decode(token_bytes(self._backend.id_to_token(token) or ""))

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class _PieceStream:
    """SentencePiece, WordPiece and GPT-1: what a token reads as depends on whether it is the first or the last.

    The rules are the pipeline's own: a token is decoded between two neighbours "a", and these cut off. Tokens that
    stand for one byte ("<0xE2>") are kept until a run of them ends, because the pipeline reads a run as a whole: all
    of it UTF-8, or every byte of it U+FFFD.
    """

    def __init__(self, backend: Tokenizer, skipped: Collection[int]) -> None:
        self._backend = backend
        self._skipped = skipped
        self._decode = _context_decoder(backend)
        self._has_bytes = backend.token_to_id("<0x00>") is not None
        self._start()

    def _start(self) -> None:
        self._first = True
        self._bytes: list[str] = []
        self._inner = self._last = ""  # of the newest token: text still to return if another follows, and if not

    def push(self, token: int) -> str:
        piece = self._backend.id_to_token(token)
        if piece is None or token in self._skipped:
            return ""
        if self._has_bytes and len(piece) == 6 and piece.startswith("<0x"):
            self._bytes.append(piece)
            return ""
        return self._end_bytes() + self._append((piece,))

    def flush(self) -> str:
        text = self._end_bytes() + self._last
        self._start()
        return text

    def _end_bytes(self) -> str:
        pieces, self._bytes = tuple(self._bytes), []
        return self._append(pieces) if pieces else ""

    def _append(self, pieces: tuple[str, ...]) -> str:
        text = self._inner
        self._inner, self._last = self._decode(pieces, self._first)
        self._first = False
        if self._inner.startswith(self._last):  # true whether another token follows or not: return it now
            text, self._inner, self._last = text + self._last, self._inner[len(self._last) :], ""
        return text


def _context_decoder(backend: Tokenizer) -> Callable[[tuple[str, ...], bool], tuple[str, str]]:
    """(pieces, whether first in the stream) -> their text if another token follows them, and if none does."""

    def join(pieces: list[str]) -> str:
        return backend.decoder.decode(pieces) if backend.decoder else " ".join(pieces)

    between = join(["a", "a"])[1:-1]  # what the pipeline itself puts between two words: " " for WordPiece, else ""

    def decode(pieces: tuple[str, ...], first: bool) -> tuple[str, str]:
        before, cut = ([], 0) if first else (["a"], 1)
        inner = join([*before, *pieces, "a"])[cut:]
        return inner[: len(inner) - len(between) - 1], join([*before, *pieces])[cut:]

    return decode


def token_bytes(piece: str) -> bytes:
    """The bytes of a byte-level token: each character stands for one; the text of an added token for itself."""
    alphabet = byte_of_character()
    try:
        return bytes(alphabet[character] for character in piece)
    except KeyError:
        return piece.encode()


@cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for their own byte, U+0100 and on for the others in order.

    From `bytes_to_unicode` in openai/gpt-2's encoder.py.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
