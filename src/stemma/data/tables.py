"""Tables of any format as rows that hold all their columns, each with the place where it stands."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stemma.data.byte_streams import COMPRESSIONS, byte_chunks, text_chunks
from stemma.data.dataset_rows import dataset_rows, is_dataset
from stemma.data.documents import lines
from stemma.data.readers import LARGEST_CSV_FIELD, format_of
from stemma.errors import InputError

Row = tuple[dict[str, Any], str]


def read_rows(path: Path, *, header: bool = True, quotes: bool = True) -> Iterator[Row]:
    """Yield the columns of each row by name, and the row's origin ("FILE, line N"; "FILE, row N" of Parquet).

    The name of the file says the format, below .gz or .zst: .csv, .tsv, .jsonl (.ndjson, .json), .parquet, or .txt
    (.text) for label-first text, a label, a blank and the text on each line, as columns "label" and "text". Blank
    lines are no rows. The columns of CSV, TSV and label-first text hold strings, those of the others what was stored.

    Args:
        path: a file, or a data set as dataset_rows.py takes it.
        header: whether the first row of CSV and TSV names the columns; otherwise they are "1", "2" and so on.
        quotes: whether a quote in CSV and TSV encloses a field; False takes it as a character like any other.

    Raises:
        InputError: the file cannot be read, is of no such format, or a row is broken; names the file and the line.
    """
    if is_dataset(path):
        return dataset_rows(path)
    file_format = format_of(path)
    if file_format in ("csv", "tsv"):
        return _csv_rows(path, "," if file_format == "csv" else "\t", header, quotes)
    if file_format == "jsonl":
        return _json_rows(path)
    if file_format == "parquet":
        return _parquet_rows(path)
    if file_format == "text":
        return _label_first_rows(path)
    raise InputError(
        f"{path}: not a table by its name; expected .csv, .tsv, .jsonl, .parquet, .txt of label-first text, or a data "
        "set: a folder or hf:owner/name"
    )


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end) for every line of a text file, compressed or not."""
    for number, line in enumerate(lines(text_chunks(path, lambda read: None)), start=1):
        yield number, line.removesuffix("\r")


def _label_first_rows(path: Path) -> Iterator[Row]:
    for number, line in numbered_lines(path):
        # Only blanks and tabs divide: other white space may belong to the text.
        label, *rest = re.split(r"[ \t]+", line.strip(" \t"), maxsplit=1)
        if rest:
            yield {"label": label, "text": rest[0]}, f"{path}, line {number}"
        elif label:
            raise InputError(f"{path}, line {number}: no text after '{label[:40]}'; expected a label, a blank, a text")


def _json_rows(path: Path) -> Iterator[Row]:
    # Not numbered_lines: a carriage return is white space to JSON.
    for number, line in enumerate(lines(text_chunks(path, lambda read: None)), start=1):
        if not line or line.isspace():
            continue
        origin = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{origin}: not JSON ({error.msg} at column {error.colno}); expected one JSON object a line"
            ) from None
        if not isinstance(row, dict):
            raise InputError(f"{origin}: a JSON {type(row).__name__}; expected one JSON object a line")
        yield row, origin


def _csv_rows(path: Path, delimiter: str, header: bool, quotes: bool) -> Iterator[Row]:
    names: list[str] | None = None
    first = ""  # where the number of columns was set
    for row, number in _divided_lines(path, delimiter, quotes):
        origin = f"{path}, line {number}"
        if names is None:
            names = row if header else [str(column) for column in range(1, len(row) + 1)]
            first = "in the header" if header else f"in line {number}"
            repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
            if repeated is not None:  # one would silently hide the other
                raise InputError(f"{origin}: two columns are named '{repeated[:40]}'; expected a name for each")
            if header:
                continue
        if len(row) != len(names):
            raise InputError(f"{origin}: {len(row)} columns; expected {len(names)} as {first}")
        yield dict(zip(names, row, strict=True)), origin


def _divided_lines(path: Path, delimiter: str, quotes: bool) -> Iterator[tuple[list[str], int]]:
    """Yield the fields of each row that is not blank, and the line on which it begins: rows may span lines."""
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_CSV_FIELD))
    text = (line + "\n" for line in lines(text_chunks(path, lambda read: None)))
    if quotes:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
    else:
        reader = csv.reader(text, delimiter=delimiter, strict=True, quoting=csv.QUOTE_NONE)
    begins = 1
    try:
        for row in reader:
            if row:
                yield row, begins
            begins = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {begins}: not a row ({error}); is a quote left open, or do quotes enclose no fields here?"
        ) from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading this format needs pyarrow: pip install 'stemma-lm[data]'") from None
    # Parquet is read from its end, so a compressed file has to be unpacked whole.
    packed = path.suffix in COMPRESSIONS
    source = io.BytesIO(b"".join(byte_chunks(path, lambda read: None))) if packed else path
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            yield from _batch_rows(file.iter_batches(batch_size=1024), path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: not a readable Parquet file ({reason})") from None


def _batch_rows(batches: Iterable[Any], path: Path) -> Iterator[Row]:
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            span = f"rows {number + 1} to {number + batch.num_rows}"
            raise InputError(f"{path}, {span}: not UTF-8 at byte {error.start} of a field") from None
        for row in rows:
            number += 1
            yield row, f"{path}, row {number}"
