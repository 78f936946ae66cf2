"""Splits of a corpus made in a test."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from stemma.data.token_arrays import FileArray
from stemma.data.tokenized_corpus import TokenizedSplit

from .corpora import SEP


@pytest.fixture
def make_split(tmp_path: Path) -> Callable[[Sequence[Sequence[int]]], TokenizedSplit]:
    """make_split(documents): a split of these documents, each after [SEP]."""

    def make(documents: Sequence[Sequence[int]]) -> TokenizedSplit:
        folder = tmp_path / f"split-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        starts = np.cumsum([0] + [1 + len(document) for document in documents])[:-1]
        stream = np.concatenate([[SEP, *document] for document in documents])
        stream.astype("<u4").tofile(folder / "tokens")
        starts.astype("<i8").tofile(folder / "documents")
        return TokenizedSplit(
            tokens=FileArray([folder / "tokens"], "<u4"),
            document_starts=FileArray([folder / "documents"], "<i8"),
            byte_starts=FileArray([folder / "documents"], "<i8"),
            bytes=len(stream),
            separator=SEP,
            vocabulary=int(stream.max()) + 1,
            fingerprint=str(hash(stream.tobytes())),
        )

    return make
