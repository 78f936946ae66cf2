import csv
import gzip
import json
import re
from pathlib import Path

import pytest

from stemma.data.readers import format_of, read
from stemma.errors import InputError

TEXTS = ["one", 'two, with "quotes"', "three\nlines\r\nof text", "\u2028 漢字", "", "last"]


def texts(path: Path, field: str = "text", count: list[int] | None = None) -> list[str]:
    counted = [] if count is None else count
    file_format = format_of(path)
    assert file_format is not None
    return [piece.text for piece in read(path, file_format, field, "file", counted.append)]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet as parquet

        table = pyarrow.Table.from_pylist(rows)
        if path.suffix == ".parquet":
            parquet.write_table(table, path)
        elif path.stem == "file":
            with pyarrow.ipc.new_file(path, table.schema) as out:
                out.write_table(table)
        else:
            with pyarrow.ipc.new_stream(path, table.schema) as out:
                out.write_table(table)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet", "file.arrow", "stream.arrow"])
def test_every_row_that_holds_text_is_a_document(tmp_path, name):
    path = write_rows(tmp_path / name, [{"id": n, "text": text, "url": "u"} for n, text in enumerate(TEXTS)])
    count: list[int] = []
    assert texts(path, count=count) == [text for text in TEXTS if text]
    assert sum(count) == pytest.approx(path.stat().st_size, abs=1)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_null_holds_no_document(tmp_path, name):
    path = write_rows(tmp_path / name, [{"text": "a"}, {"text": None}, {"text": "b"}])
    assert texts(path) == ["a", "b"]


@pytest.mark.parametrize(
    "name,where", [("a.jsonl", ", line 1"), ("a.csv", ", line 1"), ("a.parquet", ""), ("s.arrow", "")]
)
def test_missing_field_names_the_fields_present_and_the_closest(tmp_path, name, where):
    path = write_rows(tmp_path / name, [{"id": "1", "texts": "a"}])
    message = f"{path}{where}: no field 'text' (did you mean 'texts'?); the fields are: id, texts"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        texts(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_field_that_is_no_string(tmp_path, name):
    path = write_rows(tmp_path / name, [{"text": 3}])
    with pytest.raises(InputError, match=r"(line|row) 1: field 'text' is of type int; expected a string"):
        texts(path)


@pytest.mark.parametrize(
    "line,message",
    [
        ('{"text": "b"', r"line 3: not JSON \(Expecting ',' delimiter at column 13\)"),
        ('["b"]', "line 3: a JSON list; expected one JSON object a line"),
        ('{"txt": "b"}', r"line 3: no field 'text' \(did you mean 'txt'\?\); the fields are: txt"),
        (r'{"text": "b\ud800c"}', r"line 3: half a surrogate pair \(\\ud800\) at character 1; expected valid Unicode"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_bad_json_line_is_named(tmp_path, line, message, compressed):
    content = f'{{"text": "a"}}\n\n{line}\n'.encode()
    path = tmp_path / ("rows.jsonl.gz" if compressed else "rows.jsonl")
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(InputError, match=f"{path.name}, {message}"):
        texts(path)


def test_whole_surrogate_pairs_are_characters(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"text": "\ud83d\ude42"}')
    assert texts(path) == ["🙂"]


@pytest.mark.parametrize(
    "content,message",
    [
        ('id,text\n1,"a\nb"\n2\n', "line 4: 1 columns; expected 2 as in the header"),
        ('id,text\n1,a\n2,"never closed\n3,c\n', "line 3: not a CSV row .*is a quote left open"),
        ("", "line 1: no field 'text'; the fields are: none"),
    ],
)
def test_bad_csv_row_is_named_by_its_first_line(tmp_path, content, message):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=f"rows.csv, {message}"):
        texts(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_file_that_is_not_what_its_name_says(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"not at all" * 20)
    with pytest.raises(InputError, match=f"rows{suffix}: not a readable {suffix[1:].capitalize()} file"):
        texts(path)


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"rows.parquet: reading this format needs pyarrow: pip install 'stemma-lm\[d"):
        texts(path)


def test_format_follows_from_the_name():
    names = ["a.txt", "a.b.TXT.gz", "a.jsonl.zst", "a.csv", "a.md", "README", "a.gz", "a.parquet"]
    expected = ["text", "text", "jsonl", "csv", None, None, None, "parquet"]
    assert [format_of(Path(name)) for name in names] == expected
