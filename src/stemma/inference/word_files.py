"""Files with vectors of words, a sentence after the other: HDF5 as ELMo's own tools write it, or Parquet."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stemma.data.hdf5 import write_hdf5
from stemma.files import write_whole

HDF5 = (".hdf5", ".h5")
ROW_GROUP = 256  # texts whose vectors a Parquet file takes at once


def write_word_vectors(path: Path, texts: Sequence[str], vectors: Iterable[np.ndarray]) -> None:
    """Write the vectors of each text's words, whole or not at all; they are taken one text at a time.

    HDF5: under a text's number, from "0", its float32 [layers, words, width] or [words, width]; under
    "sentence_to_index" JSON {text: number}, of equal texts the last (as `allennlp elmo` writes).
    Parquet: a row a text, with "text" and "embedding", a list of lists [words][width], or "layer_0", "layer_1", ...

    Args:
        path: its ending decides. vectors: float32, of each text.
    Raises:
        InputError: h5py or pyarrow is not installed.
        OSError: it could not be written.
    """
    if path.suffix in HDF5:
        write_hdf5(path, _named(texts, vectors))
    else:
        _write_parquet(path, texts, vectors)


def _named(texts: Sequence[str], vectors: Iterable[np.ndarray]) -> Iterator[tuple[str, Any]]:
    for number, value in enumerate(vectors):
        yield str(number), value
    yield "sentence_to_index", json.dumps({text: str(number) for number, text in enumerate(texts)})


def _write_parquet(path: Path, texts: Sequence[str], vectors: Iterable[np.ndarray]) -> None:
    import pyarrow
    import pyarrow.parquet

    def table(rows: Sequence[tuple[str, np.ndarray]]) -> Any:
        columns: dict[str, Any] = {"text": [text for text, _ in rows]}
        ends = np.cumsum([0, *(value.shape[-2] for _, value in rows)], dtype=np.int32)
        joined = np.concatenate([value for _, value in rows], -2)
        layers = {"embedding": joined} if joined.ndim == 2 else {f"layer_{k}": part for k, part in enumerate(joined)}
        for name, part in layers.items():
            words = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(part.ravel()), part.shape[1])
            columns[name] = pyarrow.ListArray.from_arrays(pyarrow.array(ends), words)
        return pyarrow.table(columns)

    pairs = zip(texts, vectors, strict=True)
    with write_whole(path) as temporary:
        first = table(list(islice(pairs, ROW_GROUP)))
        with pyarrow.parquet.ParquetWriter(temporary, first.schema) as writer:
            writer.write_table(first)
            while rows := list(islice(pairs, ROW_GROUP)):
                writer.write_table(table(rows))
