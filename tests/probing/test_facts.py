"""Reading LAMA's four formats, and the questions that are made of them."""

import json
from pathlib import Path

import pytest

from stemma.errors import InputError
from stemma.probing.facts import Fact, Query, Relation, cloze, query_of, read_facts, read_relations
from stemma.probing.python_facts import python_facts


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


BORN = {"relation": "P19", "template": "[X] was born in [Y] .", "type": "N-1", "label": "place of birth"}


def test_t_rex_is_a_file_a_relation_with_templates_beside(tmp_path: Path) -> None:
    write(tmp_path / "relations.jsonl", BORN)
    write(
        tmp_path / "trex" / "P19.jsonl",
        {"sub_label": "Dante", "obj_label": "Florence", "uuid": "a"},
        {"sub_label": "Bach", "obj_label": "", "uuid": "b"},
        {"obj_label": "Rome", "uuid": "c"},
    )
    found = read_facts(tmp_path / "trex")
    assert found.facts == [Fact("P19", "Dante", "Florence", "a")]
    assert found.relations == {"P19": Relation("P19", ("[X] was born in [Y] .",), "N-1", "place of birth")}
    assert (found.name, found.read, found.dropped) == ("trex", 3, {"without a subject or an object": 2})


def test_google_re_leaves_out_what_more_judges_call_wrong(tmp_path: Path) -> None:
    votes = {"a": ["yes", "no"], "b": ["no", "no", "yes"], "c": ["yes"]}
    rows = [
        {"sub_label": name, "obj_label": "1900", "judgments": [{"rater": 1, "judgment": vote} for vote in given]}
        for name, given in votes.items()
    ]
    found = read_facts(write(tmp_path / "date_of_birth_test.jsonl", *rows))
    assert [fact.subject for fact in found.facts] == ["a", "c"] and found.dropped == {"judged wrong": 1}
    assert query_of(found.facts[0], found.relations["date_of_birth"].templates[0]) == Query("a (born", ").")


def test_sentences_are_questions_where_there_is_no_template(tmp_path: Path) -> None:
    rows = [
        {"masked_sentences": sentences, "obj_label": "gold", "sub_label": "Squad", "id": "1"}
        for sentences in (
            ["The colour was [MASK]."],
            ["No blank."],
            ["word " * 100 + "[MASK]"],
            ["It is.", "So [MASK]!"],
        )
    ]
    found = read_facts(write(tmp_path / "squad.jsonl", *rows))
    assert found.dropped == {"without a blank": 1, "longer than 100 words": 1}
    assert found.valid_objects()[("squad", "Squad", "The colour was [MASK].")] == {"gold"}  # each is its own question
    first, last = (query_of(fact, None) for fact in found.facts)
    assert first == Query("The colour was", ".")
    assert last == Query("So", "!", earlier="It is.") and last.left == "It is. So" and last.right == "!"


def test_a_lines_own_relation_counts(tmp_path: Path) -> None:
    write(tmp_path / "relations.jsonl", BORN, {**BORN, "relation": "P20", "template": "[X] died in [Y] ."})
    rows = [{"sub_label": "A", "obj_label": "B", "predicate_id": name} for name in ("P20", "P19")]
    found = read_facts(write(tmp_path / "facts.jsonl", *rows))
    assert [fact.relation for fact in found.facts] == ["P20", "P19"]


def test_patterns_are_further_templates(tmp_path: Path) -> None:
    patterns = ("[X] was born in [Y].", "[X] is from [Y].", "[Y] is where [X] is from.")
    write(tmp_path / "more" / "P19.jsonl", *({"pattern": pattern} for pattern in patterns))
    relations = read_relations(write(tmp_path / "relations.jsonl", BORN), tmp_path / "more")
    assert relations["P19"].templates == ("[X] was born in [Y] .", "[X] is from [Y].", "[Y] is where [X] is from.")
    assert cloze(relations["P19"].templates[2], "Dante") == "[MASK] is where Dante is from."


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "P91.jsonl",
            {"sub_label": "A", "obj_label": "B"},
            r"line 1: .*'P91' has no template \(did you mean 'P19'\?\)",
        ),
        ("a.jsonl", {"sub_label": "A", "obj_label": "B", "masked_sentences": "x [MASK]"}, "not a list of strings"),
        ("b.jsonl", {"sub_label": "A"}, "b.jsonl: no facts in it"),
    ],
)
def test_lines_that_are_no_facts(tmp_path: Path, name: str, row: dict, message: str) -> None:
    write(tmp_path / "relations.jsonl", BORN)
    with pytest.raises(InputError, match=message):
        read_facts(write(tmp_path / name, row))


def test_bad_relations_and_folders(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    with pytest.raises(InputError, match="more: further templates of which relations"):
        read_facts(
            write(tmp_path / "one/facts.jsonl", {"sub_label": "A", "obj_label": "B"}), patterns=tmp_path / "more"
        )
    with pytest.raises(InputError, match="none: no such file or folder of facts"):
        read_facts(tmp_path / "none")
    with pytest.raises(InputError, match="no .jsonl in this folder"):
        read_facts(tmp_path)
    with pytest.raises(InputError, match=r"line 1: '\[X\] is\.' lacks \[X\] or \[Y\]"):
        read_relations(write(tmp_path / "r.jsonl", {"relation": "P1", "template": "[X] is."}))
    with pytest.raises(InputError, match="line 1: no text in field 'relation'"):
        read_relations(write(tmp_path / "r.jsonl", {"template": "[X] is [Y]."}))
    with pytest.raises(InputError, match=r"no blank in 'Nothing\.'"):
        Query.of(["Nothing."])


def test_facts_about_python_are_true() -> None:
    facts = python_facts()
    said = {(fact.relation, fact.subject, fact.object) for fact in facts.facts}
    assert {("method", "append", "list"), ("base", "KeyError", "LookupError"), ("module", "sqrt", "math")} <= said
    assert ("method", "append", "tuple") not in said
    assert all(hasattr(eval(fact.object), fact.subject) for fact in facts.facts if fact.relation == "method")
    assert facts.valid_objects()["method", "append"] == {"list", "bytearray"}
