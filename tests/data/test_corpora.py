import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stemma.data import corpora
from stemma.data.corpora import CorpusSource, find_files, open_corpus, thinned, training_texts
from stemma.errors import InputError


def nothing(read: int) -> None:
    pass


def texts(source: CorpusSource, cache: Path | None = None) -> list[str]:
    return [piece.text for piece in open_corpus(source, cache).pieces(nothing)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    (root / "b").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "c.txt").write_text("third")
    (root / "a.jsonl").write_text('{"text": "first"}\n')
    (root / "b" / "b.csv").write_text("text\nsecond\n")
    (root / "README.md").write_text("not part of it")
    (root / ".git" / "x.txt").write_text("hidden")
    return root


def test_folder_is_read_in_sorted_order_by_known_names(folder):
    assert texts(CorpusSource(str(folder))) == ["first", "second", "third"]


def test_glob_reads_every_match_and_unknown_names_as_text(folder):
    assert texts(CorpusSource(f"{folder}/**/*.md")) == ["not part of it"]
    assert texts(CorpusSource(f"{folder}/**/*.[jc]s*")) == ["first", "second"]


def test_format_can_be_given(tmp_path):
    (tmp_path / "rows").write_text('{"body": "a"}\n{"body": "b"}\n')
    assert texts(CorpusSource(str(tmp_path / "rows"), field="body", format="jsonl")) == ["a", "b"]


@pytest.mark.parametrize(
    "documents,expected", [("file", ["a\nb\n\nc\n"]), ("paragraph", ["a\nb", "c"]), ("line", list("abc"))]
)
def test_division_of_text_into_documents(tmp_path, documents, expected):
    (tmp_path / "t.txt").write_text("a\nb\n\nc\n")
    assert texts(CorpusSource(str(tmp_path / "t.txt"), documents=documents)) == expected


def test_folder_of_a_saved_data_set(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"id": [1, 2, 3], "text": ["a", "b", "c"]})
    rows.select([2, 0]).save_to_disk(tmp_path / "one", num_shards=2)
    assert texts(CorpusSource(str(tmp_path / "one"))) == ["c", "a"]
    datasets.DatasetDict({"test": rows, "train": rows.select([1])}).save_to_disk(tmp_path / "several")
    assert texts(CorpusSource(str(tmp_path / "several"))) == ["b"]
    datasets.DatasetDict({"test": rows, "dev": rows}).save_to_disk(tmp_path / "no-train")
    with pytest.raises(InputError, match="no-train: a data set without a split 'train'; .*'test', 'dev'"):
        find_files(str(tmp_path / "no-train"))


def test_standard_input_can_be_read_twice(tmp_path, monkeypatch):
    corpora._spool_standard_input.cache_clear()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"body": "a"}\n')))
    source = CorpusSource("-", field="body", format="jsonl")
    assert texts(source, tmp_path) == ["a"]
    assert texts(source, tmp_path) == ["a"]
    assert len(list((tmp_path / "standard-input").iterdir())) == 1
    corpora._spool_standard_input.cache_clear()


@pytest.mark.parametrize(
    "what,message",
    [
        ("{}/corpus.txt", r"corpus.txt: no such file or folder \(did you mean 'corpsu.txt'\?\)$"),
        ("{}/zzz/corpus.txt", "corpus.txt: no such file, nor a folder .*zzz$"),
        ("{}/*.csv", "csv: no file matches this pattern$"),
        ("{}/corpus.tar.gz", "corpus.tar.gz: an archive of a kind that is not read"),
        ("{}/corpus.txt.xz", "corpus.txt.xz: an archive of a kind that is not read"),
        ("{}/empty", r"empty: no file of a known format \(.txt, .*\)$"),
        ("{}/code", r"code: no file of a known format .*; for .* a pattern such as '.*code/\*\*/\*.py'$"),
    ],
)
def test_what_is_not_there(tmp_path, what, message):
    (tmp_path / "corpsu.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("pass")
    with pytest.raises(InputError, match=message):
        open_corpus(CorpusSource(what.format(tmp_path)))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"documents": "lines"}, r"documents: 'lines' \(did you mean 'line'\?\); expected file, paragraph, line"),
        ({"format": "json"}, r"format: 'json' \(did you mean 'jsonl'\?\); expected arrow, csv, jsonl"),
        ({"held_out": 1.0}, "held_out: 1.0; expected a fraction from 0 to below 1, or a path"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        CorpusSource("x", **options)


def test_fingerprint_follows_content_and_options_but_not_names(tmp_path, cache):
    def fingerprint(name: str, content: str, **options: str) -> str:
        (tmp_path / name).write_text(content)
        return open_corpus(CorpusSource(str(tmp_path / name), **options)).fingerprint(cache, nothing)

    first = fingerprint("a.txt", "text")
    assert fingerprint("b.txt", "text") == first
    others = [
        fingerprint("a.txt", "text!"),
        fingerprint("a.jsonl", "text"),
        fingerprint("b.txt", "text", documents="line"),
        fingerprint("b.txt", "text", field="other"),
    ]
    assert len({first, *others}) == 5


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    corpus = open_corpus(CorpusSource(str(path)))
    corpus.check_unchanged()
    path.write_text("before and after")
    with pytest.raises(InputError, match="a.txt: changed while it was being read"):
        corpus.check_unchanged()


def test_tokenizer_is_trained_on_the_training_side_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [f"document {n}" for n in range(400)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    everything = list(training_texts(CorpusSource(str(path), held_out=0.0)))
    part = list(training_texts(CorpusSource(str(path), held_out=0.1)))
    assert everything == rows
    assert set(part) < set(rows) and 330 < len(part) < 385
    assert list(training_texts(CorpusSource(str(path), held_out="elsewhere.txt"))) == rows


def test_of_a_large_corpus_a_tokenizer_sees_parts_from_all_over() -> None:
    texts = [f"{number:05}" for number in range(20_000)]  # a hundred times what is enough
    kept = list(thinned(texts, enough=1000))
    assert kept[:200] == texts[:200]
    assert sum(map(len, kept)) == pytest.approx(1000 * (1 + math.log(100)), abs=5)
    counts = [sum(start <= int(text) < 2 * start for text in kept) for start in (1250, 2500, 5000, 10_000)]
    assert all(count == pytest.approx(200 * math.log(2), abs=1.5) for count in counts)
    assert list(thinned(texts)) == texts


@pytest.mark.parametrize("content", ["", " \n\n\t \n"])
def test_a_tokenizer_has_nothing_to_learn_from_an_empty_corpus(tmp_path, content):
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(InputError, match=r"empty\.txt: an empty corpus; expected at least one document"):
        list(training_texts(CorpusSource(str(tmp_path / "empty.txt"))))
    (tmp_path / "tiny.txt").write_text("tiny")
    with pytest.raises(InputError, match=r"tiny\.txt: nothing would be held out: a fraction of 0\.05 is less than one"):
        list(training_texts(CorpusSource(str(tmp_path / "tiny.txt"))))
