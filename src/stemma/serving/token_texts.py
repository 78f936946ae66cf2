"""Single tokens as text."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from tokenizers import decoders

from stemma.data.stream_decoding import token_bytes
from stemma.data.tokenizers import Tokenizer


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
