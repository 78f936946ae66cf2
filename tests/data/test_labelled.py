import csv
import gzip
import json
import os
import re
from pathlib import Path

import pytest
import zstandard

from stemma.data.labelled import LabelledData, leakage, read_labelled, split_by_hash
from stemma.data.parallel_texts import read_parallel
from stemma.data.tables import read_rows
from stemma.errors import InputError

# Published data sets, which the project does not contain; any folder with the files below will do.
PUBLISHED = Path(os.environ.get("STEMMA_PUBLISHED_DATA", Path(__file__).parents[3] / "shared/data"))
ROWS = [
    {"sentence": 'good, "really"', "other": "\u2028 漢字", "class": "pos"},
    {"sentence": "two\nlines", "other": "b", "class": "neg"},
    {"sentence": "fine", "other": "c", "class": "pos"},
]


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write to a name without compression, then compress as the name says."""
    plain = path.with_name("plain")
    if ".parquet" in path.suffixes:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    elif ".jsonl" in path.suffixes:
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(plain, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ".tsv" in path.suffixes else ",")
            writer.writeheader()
            writer.writerows(rows)
    return write(path, plain.read_bytes())


def jsonl(path: Path, *rows: object) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def fails(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_all_columns_and_the_origin(tmp_path: Path, suffix: str, packing: str) -> None:
    path = write_rows(tmp_path / f"table{suffix}{packing}", ROWS)
    rows = list(read_rows(path))
    assert [row for row, _ in rows] == ROWS
    numbers = {".jsonl": (1, 2, 3), ".parquet": (1, 2, 3)}.get(suffix, (2, 3, 5))
    unit = "row" if suffix == ".parquet" else "line"
    assert [origin for _, origin in rows] == [f"{path}, {unit} {number}" for number in numbers]


def test_without_a_header_columns_have_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "news.csv", '"3","Title","a, b"\r\n\r\n"4","Other","c"\r\n')
    assert list(read_rows(path, header=False)) == [
        ({"1": "3", "2": "Title", "3": "a, b"}, f"{path}, line 1"),
        ({"1": "4", "2": "Other", "3": "c"}, f"{path}, line 3"),
    ]


def test_quotes_may_be_characters_like_any_other(tmp_path: Path) -> None:
    path = write(tmp_path / "glue.tsv", 'sentence\tlabel\n"open\t1\nsaid "so"\t0\n')
    rows = [row for row, _ in read_rows(path, quotes=False)]
    assert rows == [{"sentence": '"open', "label": "1"}, {"sentence": 'said "so"', "label": "0"}]


def test_label_first_text(tmp_path: Path) -> None:
    path = write(tmp_path / "sst2.txt", "0 one long string of cliches .\r\n\n1\t fun\u00a0\u2028 \n")
    assert list(read_rows(path)) == [
        ({"label": "0", "text": "one long string of cliches ."}, f"{path}, line 1"),
        ({"label": "1", "text": "fun\u00a0\u2028"}, f"{path}, line 3"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "0 a\n1\n", ", line 2: no text after '1'; expected a label, a blank, a text"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", ", line 3: 3 columns; expected 2 as in the header"),
        ("a.csv", "a,b,a\n", ", line 1: two columns are named 'a'; expected a name for each"),
        (
            "a.csv",
            'a,b\n1,2\n1,"2\n',
            ", line 3: not a row (unexpected end of data); is a quote left open, or do quotes enclose no fields here?",
        ),
        (
            "a.jsonl",
            '{"a": 1}\n\n{"a" 1}\n',
            ", line 3: not JSON (Expecting ':' delimiter at column 6); expected one JSON object a line",
        ),
        ("a.jsonl", "[1]\n", ", line 1: a JSON list; expected one JSON object a line"),
        (
            "a.bin",
            "",
            ": not a table by its name; expected .csv, .tsv, .jsonl, .parquet, .txt of label-first text, or a data "
            "set: a folder or hf:owner/name",
        ),
        ("a.txt", b"0 caf\xe9\n", ": not UTF-8 at byte 5 (0xe9, invalid continuation byte); expected UTF-8 text"),
    ],
)
def test_broken_rows(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with fails(f"{path}{message}"):
        list(read_rows(path))


def test_without_a_header_the_first_line_sets_the_number_of_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "\n1,2\n1\n")
    with fails(f"{path}, line 3: 1 columns; expected 2 as in line 2"):
        list(read_rows(path, header=False))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with fails(f"{tmp_path / 'none.csv'}: cannot be read (No such file or directory)"):
        list(read_rows(tmp_path / "none.csv"))
    path = write(tmp_path / "a.parquet", "no Parquet at all")
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: not a readable Parquet file \\("):
        list(read_rows(path))


def test_labels_are_numbered_by_frequency_then_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,x\nb,z\nc,z\nd,y\n")
    data = read_labelled(path, text="text", label="label")
    assert data == LabelledData([("a",), ("b",), ("c",), ("d",)], [1, 0, 0, 2], ("z", "x", "y"))
    assert data.label_counts == {"z": 2, "x": 1, "y": 1}
    assert len(data) == 4


def test_label_names_of_the_training_set_set_the_numbers(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    data = read_labelled(path, text="sentence", pair="other", label="class", label_names=["neg", "neutral", "pos"])
    assert data.texts == [(row["sentence"], row["other"]) for row in ROWS]
    assert data.labels == [2, 0, 2]
    assert data.label_counts == {"neg": 1, "neutral": 0, "pos": 2}


def test_labels_that_are_no_strings(tmp_path: Path) -> None:
    booleans = jsonl(tmp_path / "a.jsonl", *[{"t": "a", "l": value} for value in (True, False, True)])
    assert read_labelled(booleans, text="t", label="l").label_names == ("true", "false")
    numbers = jsonl(tmp_path / "b.jsonl", *[{"t": "a", "l": value} for value in (2, 2, 10)])
    assert read_labelled(numbers, text="t", label="l").label_names == ("2", "10")


def test_regression_keeps_the_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "stsb.tsv", "1\ta\tb\t3.5\n2\tc\td\t-1e-1\n")
    data = read_labelled(path, text="2", pair="3", label="4", regression=True, header=False)
    assert data == LabelledData([("a", "b"), ("c", "d")], [3.5, -0.1], ())
    assert data.label_counts == {}


@pytest.mark.parametrize("value", ["high", "nan", "", True, None, [1]])
def test_a_regression_label_that_is_no_number(tmp_path: Path, value: object) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"t": "a", "l": 1}, {"t": "a", "l": value})
    with fails(f"{path}, line 2: label 'l' is {str(value)!r}; expected a finite number"):
        read_labelled(path, text="t", label="l", regression=True)


def test_an_unknown_label_names_the_closest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "t,l\na,entailment\nb,entailed\n")
    with fails(
        f"{path}, line 3: unknown label 'entailed' (did you mean 'entailment'?); "
        "the labels of the training set are: neutral, entailment"
    ):
        read_labelled(path, text="t", label="l", label_names=("neutral", "entailment"))


def test_a_missing_column_names_the_closest_and_those_present(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", ROWS)
    expected = f"{path}, line 2: no field 'sentense' (did you mean 'sentence'?); the fields are: sentence, other, class"
    with fails(expected):
        read_labelled(path, text="sentense", label="class")
    for columns in {"text": "sentence", "label": "x"}, {"text": "sentence", "pair": "x", "label": "class"}:
        with fails(f"{path}, line 2: no field 'x'; the fields are: sentence, other, class"):
            read_labelled(path, **columns)
    with fails(
        f"{path}, line 2: no field '2'; the fields are: sentence, other, class "
        "(columns have numbers only in a file without a header)"
    ):
        read_labelled(path, text="2", label="class")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"t": " ", "l": 1}, "field 't' is empty; expected a text in every row"),
        ({"t": None, "l": 1}, "field 't' is empty; expected a text in every row"),
        ({"t": {"text": "a"}, "l": 1}, "field 't' is of type dict; expected a string"),
        ({"t": "\ud800", "l": 1}, "half a surrogate pair (\\ud800) at character 0; expected valid Unicode"),
        ({"t": "a", "l": ""}, "field 'l' is empty; expected a label in every row"),
        ({"t": "a", "l": None}, "field 'l' is empty; expected a label in every row"),
        ({"t": "a", "l": 1.5}, "label 'l' is of type float; expected a string, a whole number or a boolean"),
    ],
)
def test_fields_that_hold_no_text_or_label(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"t": "a", "l": 1}, row)
    with fails(f"{path}, line 2: {message}"):
        read_labelled(path, text="t", label="l")


@pytest.mark.parametrize(("name", "content"), [("a.csv", ""), ("a.csv", "t,l\n"), ("a.jsonl", "\n"), ("a.txt", "")])
def test_a_file_without_rows(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content)
    with fails(f"{path}: no rows; expected at least one labelled text"):
        read_labelled(path, text="t", label="l")


def test_label_names_that_make_no_sense(tmp_path: Path) -> None:
    with fails("the labels of a regression are numbers; expected no label names"):
        read_labelled(tmp_path / "a.csv", text="t", label="l", label_names=["a"], regression=True)
    with fails("label names: one is there twice in a, b, a; expected each once"):
        read_labelled(tmp_path / "a.csv", text="t", label="l", label_names=["a", "b", "a"])


def numbered(count: int) -> LabelledData:
    """Every text twice, with another label the second time."""
    texts = [(f"text {number}", "pair") for number in range(count)] * 2
    return LabelledData(texts, [0] * count + [1] * count, ("a", "b"))


def test_a_split_depends_on_text_and_seed_alone() -> None:
    data = numbered(2000)
    rest, held_out = split_by_hash(data, 0.1, seed=0)
    assert leakage(rest, held_out) == 0
    assert len(rest) + len(held_out) == 4000
    assert len(held_out) == pytest.approx(400, abs=80)  # 6 standard deviations of the binomial of the 2,000 texts
    assert held_out.labels == [0] * (len(held_out) // 2) + [1] * (len(held_out) // 2)
    assert held_out.label_names == ("a", "b")
    assert split_by_hash(data, 0.1, seed=0) == (rest, held_out)
    backwards = LabelledData(data.texts[::-1], data.labels[::-1], data.label_names)
    assert split_by_hash(backwards, 0.1, seed=0)[1].texts == held_out.texts[::-1]
    other = split_by_hash(data, 0.1, seed=1)[1]
    assert leakage(held_out, other) == pytest.approx(0.1 * len(other), abs=50)
    assert set(held_out.texts) < set(split_by_hash(data, 0.2, seed=0)[1].texts)


def test_the_split_of_a_seed_never_changes() -> None:
    texts = [(name,) for name in "abcdefghijklmnopqrstuvwxyz"]
    held_out = split_by_hash(LabelledData(texts, [0] * 26, ("x",)), 0.3, seed=7)[1]
    assert "".join(text for (text,) in held_out.texts) == "bmnotxy"


def test_splits_that_cannot_be() -> None:
    data = LabelledData([("a",)], [0], ("x",))
    for share in 0, 1, -0.5:
        with fails(f"a share of {share:g} cannot be held out; expected one between 0 and 1"):
            split_by_hash(data, share, seed=0)
    with fails("nothing would be held out: a share of 1e-06 of 1 examples; expected more of them"):
        split_by_hash(data, 1e-6, seed=0)
    with fails("nothing would remain: a share of 0.999999 of 1 examples; expected more of them"):
        split_by_hash(data, 0.999999, seed=0)


def test_leakage_counts_the_test_examples_seen_in_training() -> None:
    train = LabelledData([("a", "b"), ("a", "b"), ("c", "d")], [0, 0, 0], ("x",))
    test = LabelledData([("a", "b"), ("a", "b"), ("b", "a"), ("c", "D"), ("c", "d")], [0] * 5, ("x",))
    assert leakage(train, test) == 3


def test_pairs_of_files(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en.gz", "one\r\n\ntwo \u2028 parts\n")
    target = write(tmp_path / "a.de", "eins\nleer\nzwei")
    assert read_parallel(source, target) == [("one", "eins"), ("", "leer"), ("two \u2028 parts", "zwei")]


def test_pairs_of_files_out_of_step(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.en", "a\n" * 1001), write(tmp_path / "a.de.gz", "a\nb\n")
    with fails(f"{source} has 1,001 lines, but {target} 2; expected equally many, a pair a line"):
        read_parallel(source, target)
    empty = write(tmp_path / "b.en", "")
    with fails(f"{empty} and {empty}: no lines; expected at least one pair"):
        read_parallel(empty, empty)


@pytest.mark.skipif(not (PUBLISHED / "classification").is_dir(), reason="published data sets are not here")
def test_published_classification_sets() -> None:
    """Counts from the sets' own descriptions: Socher et al. 2013, Zhang et al. 2015, and SuperGLUE's tasks."""
    folder = PUBLISHED / "classification"
    train = read_labelled(folder / "sst2.train.txt", text="text", label="label")
    test = read_labelled(folder / "sst2.test.txt", text="text", label="label", label_names=train.label_names)
    assert (len(train), train.label_counts) == (6920, {"1": 3610, "0": 3310})
    assert (len(test), test.label_counts) == (1821, {"1": 909, "0": 912})
    news = read_labelled(folder / "ag_news.test.csv", text="2", pair="3", label="1", header=False)
    assert news.label_counts == {"1": 1900, "2": 1900, "3": 1900, "4": 1900}
    boolq = read_labelled(
        folder / "superglue_32shot/BoolQ/val.jsonl.gz", text="question", pair="passage", label="label"
    )
    assert boolq.label_counts == {"true": 2033, "false": 1237}


@pytest.mark.skipif(not (PUBLISHED / "translation").is_dir(), reason="published data sets are not here")
def test_published_translations() -> None:
    folder = PUBLISHED / "translation"
    assert len(read_parallel(folder / "val.en.gz", folder / "val.de.gz")) == 1014
