import sys
from pathlib import Path

import pytest

from stemma.data import hub_datasets
from stemma.data.corpora import CorpusSource, open_corpus
from stemma.errors import InputError


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set on disk in the form of those on the hub, which `datasets` reads as a stream as it would from there."""
    monkeypatch.setattr(hub_datasets, "_revision", lambda name: "0123abc")
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "c"}\n')
    return str(tmp_path)


def texts(what: str, field: str = "text") -> list[str]:
    return [piece.text for piece in open_corpus(CorpusSource(what, field=field)).pieces(lambda read: None)]


def test_rows_stream_from_the_split_asked_for(repository):
    assert texts(f"hf:{repository}") == ["a", "b"]
    assert texts(f"hf:{repository}:test") == ["c"]
    assert texts(f"hf:{repository}:default:test") == ["c"]


def test_missing_field_and_split(repository):
    with pytest.raises(InputError, match=r"row 1: no field 'txt' \(did you mean 'text'\?\); the fields are: text"):
        texts(f"hf:{repository}", "txt")
    with pytest.raises(InputError, match="cannot be read after row 0 .*validation"):
        texts(f"hf:{repository}:validation")


def test_the_name_is_taken_apart(monkeypatch):
    monkeypatch.setattr(hub_datasets, "_revision", lambda name: "0123abc")
    opened = [
        hub_datasets.open_hub_corpus(what, "text") for what in ("hf:o/n", "hf:o/n:c", "hf:o/n:test", "hf:o/n:c:s")
    ]
    assert [(corpus.name, corpus.config, corpus.split) for corpus in opened] == [
        ("o/n", None, "train"),
        ("o/n", "c", "train"),
        ("o/n", None, "test"),
        ("o/n", "c", "s"),
    ]
    assert len({corpus.fingerprint(Path(), lambda read: None) for corpus in opened}) == 4
    with pytest.raises(InputError, match="expected hf:owner/name"):
        hub_datasets.open_hub_corpus("hf:o/n:c:s:x", "text")


def test_no_such_data_set_is_one_line(monkeypatch):

    def refuse(self: object, name: str) -> None:
        raise OSError("404 not found\nmore lines\n")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(InputError, match=r"^hf:o/n: the hub does not give it \(404 not found\); offline, give .*$"):
        open_corpus(CorpusSource("hf:o/n"))


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"need the library 'datasets': pip install 'stemma-lm\[data\]'"):
        open_corpus(CorpusSource("hf:o/n"))
