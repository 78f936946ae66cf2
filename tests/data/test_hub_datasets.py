import json
import sys
from pathlib import Path
from typing import Any

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
    return [piece.text for piece in hub_datasets.open_hub_corpus(what, field).pieces(lambda read: None)]


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


def of_folder(what: str, **options: Any) -> list[str]:
    return [piece.text for piece in open_corpus(CorpusSource(what, **options)).pieces(lambda read: None)]


def test_a_folder_in_place_of_a_name(tmp_path: Path) -> None:
    """Of files as they lie on the hub `datasets` says which are of a split; nothing asks the hub."""
    for name, rows in {"train": "ab", "test": "c"}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    assert of_folder(f"hf:{tmp_path}") == of_folder(f"hf:{tmp_path}:default:train") == ["a", "b"]
    assert of_folder(f"hf:{tmp_path}:test") == ["c"]
    with pytest.raises(InputError, match=r"no split 'validation'; there are: train, test$"):
        of_folder(f"hf:{tmp_path}:validation")
    with pytest.raises(InputError, match=r"train\.jsonl, line 1: no field 'txt' \(did you mean 'text'\?\)"):
        of_folder(f"hf:{tmp_path}", field="txt")
    first = open_corpus(CorpusSource(f"hf:{tmp_path}")).fingerprint(tmp_path / "cache", lambda read: None)
    (tmp_path / "train.jsonl").write_text('{"text": "another"}\n')
    assert open_corpus(CorpusSource(f"hf:{tmp_path}")).fingerprint(tmp_path / "cache", lambda read: None) != first


def test_a_folder_that_save_to_disk_wrote(tmp_path: Path) -> None:
    import datasets

    rows = {"train": ["a", "b"], "test": ["c"]}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": texts}) for name, texts in rows.items()})
    saved.save_to_disk(tmp_path / "both")
    assert of_folder(f"hf:{tmp_path / 'both'}") == ["a", "b"] and of_folder(f"hf:{tmp_path / 'both'}:test") == ["c"]
    assert of_folder(f"hf:{tmp_path / 'both' / 'test'}") == ["c"]
    with pytest.raises(InputError, match="no split 'tset' \\(did you mean 'test'\\?\\); there are: test, train"):
        of_folder(f"hf:{tmp_path / 'both'}:tset")
    with pytest.raises(InputError, match="no split 'test'; the data set is not divided"):
        of_folder(f"hf:{tmp_path / 'both' / 'test'}:test")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none: cannot be read as a data set"):
        of_folder(f"hf:{tmp_path / 'none'}")
