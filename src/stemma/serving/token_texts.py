"""Single tokens as text, and texts in which special tokens are meant as such."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache

import tokenizers
from tokenizers import decoders

from stemma.data.stream_decoding import token_bytes
from stemma.data.tokenizers import Tokenizer

# Written into what users say where it spells a special token; dropped before the text is encoded. A code point that
# Unicode keeps free for a program's own use and out of exchanged text.
BREAK = "\U0010fffe"


class TokenTexts:
    """What each token reads as by itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bytes = lru_cache(maxsize=None)(self._bytes)
        self.text = lru_cache(maxsize=None)(self._text)

    def offsets(self, tokens: Sequence[int], begin: int = 0) -> Iterator[int]:
        """Yield where in the text each token begins, in characters; `begin` is where the first does."""
        decoder = self.tokenizer.stream_decoder()
        for token in tokens:
            yield begin
            begin += len(decoder.push(token))

    def _text(self, token: int) -> str:
        """As text; as "bytes:\\xe2\\x82" if it is part of a character, as OpenAI writes it."""
        content = self.bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _bytes(self, token: int) -> bytes:
        backend = self.tokenizer.backend
        piece = backend.id_to_token(token)
        if piece is None:  # the model knows more ids than the tokenizer
            return f"<{token}>".encode()
        if token in self.tokenizer.special:
            return piece.encode()
        if isinstance(backend.decoder, decoders.ByteLevel):
            return token_bytes(piece)
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        return backend.decoder.decode(["a", piece])[1:].encode() if backend.decoder else piece.encode()


def special_finder(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Return a pipeline with the same ids that reads the names of special tokens as these tokens, but for `unspecial`.

    For texts that a program has put together: chat templates, and what comes to `/tokenize`.
    """
    content = json.loads(tokenizer.backend.to_str())
    for token in content["added_tokens"]:
        if token["special"]:
            token["normalized"] = False  # found before the breaks are dropped
    drop = {"type": "Replace", "pattern": {"String": BREAK}, "content": ""}
    steps = [drop] if content["normalizer"] is None else [drop, content["normalizer"]]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def unspecial(text: str, tokenizer: Tokenizer) -> str:
    """Return a text that `special_finder` reads as plain text throughout, whatever a user has written in it."""
    text = text.replace(BREAK, "")
    for token in sorted(tokenizer.special):
        name = tokenizer.token(token)
        if name in text:
            text = text.replace(name, name[:1] + BREAK + name[1:] if len(name) > 1 else BREAK)
    return text
