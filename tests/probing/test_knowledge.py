"""Looking questions up in triples."""

import json
import sqlite3
from pathlib import Path

import pytest

from stemma.probing.knowledge import Knowledge, Triple


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    relations = [
        {"relation": "P19", "template": "[X] was born in [Y] .", "label": "place of birth", "type": "N-1"},
        {"relation": "P36", "template": "The capital of [X] is [Y] ."},
    ]
    facts = [
        ("P19", "Dante Alighieri", "Florence"),
        ("P19", "Petrarch", "Arezzo"),
        ("P19", "Machiavelli", "Florence"),
        ("P36", "Italy", "Rome"),
        ("P36", "Italy", "Florence"),
    ]
    rows = [{"relation": name, "sub_label": subject, "obj_label": gold} for name, subject, gold in facts]
    for name, content in (("relations.jsonl", relations), ("facts.jsonl", rows)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    return tmp_path


def knowledge(folder: Path) -> Knowledge:
    return Knowledge.of(folder / "facts.jsonl", cache=folder / "cache")


DANTE = Triple("Dante Alighieri", "place of birth", "Florence")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dante Alighieri was born in [MASK].", [DANTE]),
        ("dante was born in [MASK] .", [DANTE]),  # part of a name
        ("Dan was born in [MASK].", []),  # part of a word
        ("The capital of Italy is [MASK]", [Triple("Italy", "P36", "Rome"), Triple("Italy", "P36", "Florence")]),
        ("[MASK] was born in Florence.", [DANTE, Triple("Machiavelli", "place of birth", "Florence")]),
        ("[MASK] was born in [MASK].", []),
        ("Petrarch was born in Arezzo.", []),
        ("Petrarch lived in [MASK].", []),
    ],
)
def test_questions_that_a_template_puts(folder: Path, text: str, expected: list[Triple]) -> None:
    assert knowledge(folder).answers(text) == expected


def test_what_is_known_of_whom_a_text_names(folder: Path) -> None:
    base = knowledge(folder)
    assert base.about("Where did Dante Alighieri live? In [MASK].") == [DANTE]
    assert base.about("In Italy, [MASK] is large.", most=1) == [Triple("Italy", "P36", "Rome")]
    assert base.about("Nobody [MASK].") == []


def test_it_is_built_once_and_again_when_the_facts_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knowledge(folder)
    (database,) = (folder / "cache/knowledge").iterdir()
    assert sqlite3.connect(database).execute("select count(*) from fact").fetchone() == (5,)
    written = database.stat().st_mtime_ns
    assert knowledge(folder).answers("Petrarch was born in [MASK].")
    assert database.stat().st_mtime_ns == written
    with (folder / "facts.jsonl").open("a") as file:
        file.write(json.dumps({"relation": "P19", "sub_label": "Boccaccio", "obj_label": "Certaldo"}) + "\n")
    assert [one.object for one in knowledge(folder).answers("Boccaccio was born in [MASK].")] == ["Certaldo"]
    with (folder / "relations.jsonl").open("a") as file:
        file.write(json.dumps({"relation": "P19", "template": "[X] is from [Y]."}) + "\n")
    assert [one.object for one in knowledge(folder).answers("Petrarch is from [MASK].")] == ["Arezzo"]
