"""A tokenizer small enough to follow by hand: a token a byte."""

from pathlib import Path

import pytest


class ByteTokenizer:
    """Token = byte, separator = 256. Counts its calls, and can be interrupted before one of them."""

    def __init__(self, vocabulary: int = 257) -> None:
        self.vocabulary = vocabulary
        self.separator = 256
        self.fingerprint = f"bytes-{vocabulary}"
        self.encoded: list[str] = []
        self.interrupt_after: int | None = None

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        for text in texts:
            if self.interrupt_after is not None and len(self.encoded) >= self.interrupt_after:
                raise KeyboardInterrupt
            self.encoded.append(text)
        return [list(text.encode()) for text in texts]


@pytest.fixture
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
