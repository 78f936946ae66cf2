"""File formats: each reader turns one file into pieces of documents."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stemma.data.byte_streams import COMPRESSIONS, Count, standard_input, text_chunks
from stemma.data.documents import SPLITTERS, Piece, lines, whole
from stemma.errors import InputError, closest

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
LARGEST_CSV_FIELD = 1 << 26  # characters; reached in practice only when a quote is never closed


def format_of(path: Path) -> str | None:
    """The format that a file's name stands for, below .gz or .zst; None if it stands for none of ours."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    return FORMATS.get(suffixes[-1].lower()) if suffixes else None


def read(path: Path, file_format: str, field: str, documents: str, count: Count) -> Iterator[Piece]:
    """Yield the documents of one file.

    Text is divided as `documents` says ("file", "paragraph" or "line"); of the other formats each row is a document,
    the string in `field`. Empty and null fields hold no document. Raises InputError naming file and line, row or byte.
    """
    if file_format == "text":
        yield from SPLITTERS[documents](text_chunks(path, count), str(path))
        return
    for row, origin in field_values(path, file_format, field, count):
        yield from row_pieces(row, field, origin)


def field_values(path: Path, file_format: str, field: str, count: Count) -> Iterator[tuple[Any, str]]:
    """Yield what `field` holds in each row of a file that is no text file, null and empty too, and where it stands."""
    rows = {"jsonl": _json_rows, "csv": _csv_rows, "tsv": _csv_rows, "parquet": _parquet_rows, "arrow": _arrow_rows}
    yield from rows[file_format](path, field, count)


def texts_in_order(path: Path, field: str) -> Iterator[str]:
    """Yield the text of every line of a text file, or of every row of another, so that the n-th is that of row n.

    Args:
        path: "-" is standard input, a text a line.
    Raises:
        InputError: one that is blank, null or no string, besides what `read` raises.
    """
    file_format, piped = format_of(path) or "text", str(path) == "-"
    if file_format == "text":
        chunks = standard_input() if piped else text_chunks(path, lambda read: None)
        name = "standard input" if piped else path
        found: Iterable[tuple[Any, str]] = (
            (line.removesuffix("\r"), f"{name}, line {number}") for number, line in enumerate(lines(chunks), start=1)
        )
    else:
        found = field_values(path, file_format, field, lambda read: None)
    for value, origin in found:
        if value is None or (isinstance(value, str) and not value.strip()):
            raise InputError(f"{origin}: empty; expected a text in every line or row")
        if not isinstance(value, str):
            raise InputError(f"{origin}: field '{field}' is of type {type(value).__name__}; expected a string")
        check_unicode(value, origin)
        yield value


def row_pieces(value: Any, field: str, origin: str) -> Iterator[Piece]:
    """Yield the document in one row's field; nothing if it is null or empty."""
    if value is None:
        return
    if not isinstance(value, str):
        raise InputError(f"{origin}: field '{field}' is of type {type(value).__name__}; expected a string")
    if not value.isascii():
        check_unicode(value, origin)
    yield from whole([value], origin)


def check_unicode(text: str, origin: str) -> None:
    """Raise InputError if `text` holds half of a surrogate pair (JSON can escape one; UTF-8 cannot write it)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(
            f"{origin}: half a surrogate pair ({half}) at character {error.start}; expected valid Unicode"
        ) from None


def missing_field(field: str, present: Iterable[str], origin: str) -> InputError:
    """The error for rows without the field: names those that are there, and the nearest."""
    names = list(present)
    listed = ", ".join(name[:40] for name in names[:12]) + (", ..." if len(names) > 12 else "")
    return InputError(f"{origin}: no field '{field}'{closest(field, names)}; the fields are: {listed or 'none'}")


def _json_rows(path: Path, field: str, count: Count) -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(lines(text_chunks(path, count)), start=1):
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
        if field not in row:
            raise missing_field(field, row, origin)
        yield row[field], origin


def _csv_rows(path: Path, field: str, count: Count) -> Iterator[tuple[Any, str]]:
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_CSV_FIELD))
    delimiter = "\t" if format_of(path) == "tsv" else ","
    reader = csv.reader((line + "\n" for line in lines(text_chunks(path, count))), delimiter=delimiter, strict=True)
    begins = 1  # the line on which the row begins: rows may span lines
    try:
        header = next(reader, [])
        if field not in header:
            raise missing_field(field, header, f"{path}, line 1")
        column = header.index(field)
        begins = reader.line_num + 1
        for row in reader:
            origin = f"{path}, line {begins}"
            if row and len(row) != len(header):
                raise InputError(f"{origin}: {len(row)} columns; expected {len(header)} as in the header")
            if row:
                yield row[column], origin
            begins = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {begins}: not a CSV row ({error}); is a quote left open?") from None


def _parquet_rows(path: Path, field: str, count: Count) -> Iterator[tuple[Any, str]]:
    pyarrow = _import_pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise missing_field(field, names, str(path))
            rows = max(1, file.metadata.num_rows)
            size = path.stat().st_size
            batches = file.iter_batches(batch_size=1024, columns=[field])
            yield from _column_rows(batches, field, path, lambda read: count(size * read // rows))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({_first_line(error)})") from None


def _arrow_rows(path: Path, field: str, count: Count) -> Iterator[tuple[Any, str]]:
    """Rows of one of the Arrow files that `datasets` writes (a stream), or of an Arrow IPC file."""
    pyarrow = _import_pyarrow(path)
    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                reader = pyarrow.ipc.open_stream(source)
                batches: Iterable[Any] = reader
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            if field not in reader.schema.names:
                raise missing_field(field, reader.schema.names, str(path))
            count(path.stat().st_size)
            yield from _column_rows(batches, field, path, lambda read: None)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Arrow file ({_first_line(error)})") from None


def _column_rows(batches: Iterable[Any], field: str, path: Path, count: Count) -> Iterator[tuple[Any, str]]:
    row = 0
    for batch in batches:
        column = batch.column(batch.schema.get_field_index(field))
        for scalar in column:
            row += 1
            try:
                yield scalar.as_py(), f"{path}, row {row}"
            except UnicodeDecodeError as error:
                raise InputError(f"{path}, row {row}: not UTF-8 at byte {error.start} of field '{field}'") from None
        count(len(column))


def _import_pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading this format needs pyarrow: pip install 'stemma-lm[data]'") from None
    return pyarrow


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
