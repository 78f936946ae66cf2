"""Data sets that `datasets` reads: saved ones and folders of Parquet; names for classes, splits, configurations."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from stemma.data.dataset_rows import dataset_rows, is_dataset, needs_split
from stemma.data.labelled import read_labelled
from stemma.data.tagged_rows import read_questions, read_tagged
from stemma.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def dataset(columns: dict[str, list[Any]], **kinds: Any) -> Any:
    return datasets.Dataset.from_dict(columns).cast(
        datasets.Features({**datasets.Dataset.from_dict(columns).features, **kinds})
    )


def films() -> Any:
    names = datasets.ClassLabel(names=["bad", "good"])
    return datasets.DatasetDict(
        train=dataset({"text": ["a film", "no film"], "label": [1, 0]}, label=names),
        validation=dataset({"text": ["the film"], "label": [1]}, label=names),
        unlabelled=dataset({"text": ["what film"], "label": [-1]}, label=names),
    )


def rows(what: str) -> list[dict[str, Any]]:
    return [row for row, _ in dataset_rows(what)]


def parquet(folder: Path) -> str:
    """Write the films as they lie on the hub."""
    (folder / "data").mkdir(parents=True)
    for split, part in films().items():
        part.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return str(folder)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_names_of_classes_and_splits(form: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "films")
    if form == "saved":
        films().save_to_disk(folder)
    else:
        parquet(tmp_path / "films")
    assert rows(folder) == rows(f"{folder}:train") == [
        {"text": "a film", "label": "good"},
        {"text": "no film", "label": "bad"},
    ]  # fmt: skip
    assert list(dataset_rows(f"{folder}:validation")) == [
        ({"text": "the film", "label": "good"}, f"{folder}:validation, row 1")
    ]
    assert needs_split(folder) and not needs_split(f"{folder}:validation")
    data = read_labelled(Path(folder), text="text", label="label", label_names=("bad", "good"))
    assert (data.texts, data.labels) == ([("a film",), ("no film",)], [1, 0])
    if form == "saved":  # a split of any name, also by its own folder
        assert rows(f"{folder}:unlabelled") == rows(f"{folder}/unlabelled") == [{"text": "what film", "label": None}]
        assert not needs_split(f"{folder}/unlabelled")
        with pytest.raises(InputError, match="unlabelled, row 1: field 'label' is empty; expected a label"):
            read_labelled(Path(f"{folder}/unlabelled"), text="text", label="label")
    with pytest.raises(InputError, match=r"no split 'valid' \(did you mean 'validation'\?\); there are: train"):
        rows(f"{folder}:valid")


def test_configurations(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "set" / name).mkdir(parents=True)
        row = {"text": f"of {name}", "label": 3}
        (tmp_path / "set" / name / "test.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/*\n" for name in ("one", "two")
        )
        + "---\n"
    )
    folder = str(tmp_path / "set")
    assert rows(f"{folder}:two:test") == rows(f"{folder}:two") == [{"text": "of two", "label": 3}]
    with pytest.raises(InputError, match="set: cannot be read as a data set .*one.*two"):
        rows(folder)
    with pytest.raises(InputError, match="three: cannot be read as a data set"):
        rows(f"{folder}:three")


def test_tags_and_questions(tmp_path: Path) -> None:
    tags = datasets.ClassLabel(names=["O", "I-LOC", "B-LOC"])
    lists = datasets.Features({"words": [datasets.Value("string")], "tags": [tags]})
    columns = {"words": [["to", "Lake", "Constance"], ["Bodensee"]], "tags": [[0, 1, 1], [1]]}
    datasets.Dataset.from_dict(columns, lists).save_to_disk(tmp_path / "tags")
    found = read_tagged(str(tmp_path / "tags"), words="words", tags="tags")
    assert found == [(["to", "Lake", "Constance"], ["O", "B-LOC", "I-LOC"]), (["Bodensee"], ["B-LOC"])]
    with pytest.raises(InputError, match=r"tags, row 1: no field 'tag' \(did you mean 'tags'\?\)"):
        read_tagged(str(tmp_path / "tags"), words="words", tags="tag")
    answers = [{"text": ["red"], "answer_start": [2]}, {"text": [], "answer_start": []}]
    columns = {"id": ["x", "y"], "question": ["what", "who"], "context": ["a red dog"] * 2, "answers": answers}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "asked")
    squad = read_questions(str(tmp_path / "asked"))
    assert [(one.id, one.is_impossible) for one in squad.questions] == [("x", False), ("y", True)]
    assert squad.questions[0].answers[0].fits("a red dog") and squad.misfits == 0


def test_what_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a:b").mkdir()
    (tmp_path / "table.csv").write_text("text,label\na,b\n")
    assert is_dataset("hf:owner/name") and is_dataset(tmp_path) and is_dataset(f"{tmp_path}:test")
    assert is_dataset(tmp_path / "a:b")
    assert not is_dataset(tmp_path / "table.csv") and not is_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be read as a data set"):
        rows(str(tmp_path / "a:b"))

    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("no network\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=r"^hf:o/n: cannot be read as a data set \(no network more lines\)$"):
        rows("hf:o/n")
