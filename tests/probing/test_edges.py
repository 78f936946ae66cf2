"""Edge probing's data: the published format, what it is made from, and mistakes in it."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from stemma.errors import InputError
from stemma.probing.edges import Sentence, Target, label_matrix, label_names, read_edges, write_predictions
from stemma.probing.python_edges import python_edges
from stemma.probing.spans import read_character_spans, read_dependencies, read_entities, read_parts_of_speech

ROWS = [
    {"text": "Anna sees Boris", "targets": [
        {"span1": [0, 1], "span2": [1, 2], "label": "nsubj"}, {"span1": [2, 3], "span2": [1, 2], "label": ["obj", "x"]}
    ]},
    {"text": "nothing here", "targets": []},
]  # fmt: skip


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_published_format_and_back(tmp_path: Path) -> None:
    (sentence,) = read_edges(lines(tmp_path / "a.jsonl", ROWS))
    assert sentence.words == ("Anna", "sees", "Boris")
    assert sentence.targets[1] == Target(((2, 3), (1, 2)), ("obj", "x"))
    names = label_names([[sentence]])
    assert names == ["nsubj", "obj", "x"]
    assert label_matrix([sentence], names).tolist() == [[True, False, False], [False, True, True]]
    write_predictions(tmp_path / "out.jsonl", [sentence], [np.array([0.5, 0.25, 1.0]), None])
    written = json.loads((tmp_path / "out.jsonl").read_text())
    assert [target.pop("preds") for target in written["targets"]] == [{"proba": [0.5, 0.25, 1.0]}, {"proba": None}]
    assert written == ROWS[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a b"}, 'line 1: expected a "text" and a list of "targets"'),
        ({"text": "a b", "targets": [3]}, 'line 1, target 1: expected an object with "span1" and "label"'),
        ({"text": "a b", "targets": [{"span1": [0, 3], "label": "x"}]}, r"target 1, span1: \[0, 3\] of 2 words"),
        ({"text": "a b", "targets": [{"span1": [1, 1], "label": "x"}]}, r"span1: \[1, 1\] of 2 words"),
        ({"text": "a b", "targets": [{"span1": [0], "label": "x"}]}, r"\[0\]; expected \[start, end\] in words"),
        ({"text": "a b", "targets": [{"span1": [0, 1], "label": []}]}, "target 1: label"),
        ({"text": "a b", "targets": []}, "no targets; expected labelled spans"),
        ({"text": "a", "targets": [{"span1": [0, 1], "label": "x"}, {"span1": [0, 1], "span2": [0, 1], "label": "x"}]},
         "targets with one span and with two"),
    ],
)  # fmt: skip
def test_mistakes_name_the_line(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_edges(lines(tmp_path / "a.jsonl", [row]))


TREEBANK = """# text = I do n't know
1\tI\tI\tPRON\tPRP\t_\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\t_\t4\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\t_
3.1\tx\tx\tX\tX\t_\t_\t_\t4:x\t_
4\tknow\tknow\tVERB\tVB\t_\t0\troot\t_\t_
"""


def test_a_treebank_gives_relations_and_parts_of_speech(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu.gz"
    path.write_bytes(gzip.compress(TREEBANK.encode()))
    (sentence,) = read_dependencies(path)
    assert sentence.words == ("I", "do", "n't", "know")
    assert [(target.spans, *target.labels) for target in sentence.targets] == [
        (((0, 1), (3, 4)), "nsubj"), (((1, 2), (3, 4)), "aux"), (((2, 3), (3, 4)), "advmod"), (((3, 4), (3, 4)), "root")
    ]  # fmt: skip
    (tagged,) = read_parts_of_speech(path)
    assert [(target.spans, *target.labels) for target in tagged.targets] == [
        (((0, 1),), "PRON"), (((1, 2),), "AUX"), (((2, 3),), "PART"), (((3, 4),), "VERB")
    ]  # fmt: skip


def test_mistakes_in_a_treebank(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(TREEBANK.replace("\t0\troot", "\t5\troot"))
    with pytest.raises(InputError, match="sentence 1: head '5' of word 4; expected 0 to 4"):
        read_dependencies(path)
    with pytest.raises(InputError, match="not a treebank by its name; expected .conllu"):
        read_parts_of_speech(tmp_path / "a.txt")


def test_entities_of_any_scheme_become_spans(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("Lake I-LOC\nConstance I-LOC\nBodensee B-LOC\nin O\nEurope I-LOC\n\nno O\none O\n")
    (sentence,) = read_entities(path)
    assert [target.spans for target in sentence.targets] == [((0, 2),), ((2, 3),), ((4, 5),)]


def test_spans_of_characters_stand_for_the_words_they_touch(tmp_path: Path) -> None:
    text = "Anna  sees Boris."
    spans = [
        {"start": 11, "end": 16, "label": "person"}, {"start": 0, "end": 7, "label": "more", "start2": 12, "end2": 13}
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    (one,) = read_character_spans(lines(path, [{"text": text, "spans": spans[:1]}]))
    assert one == Sentence(("Anna", "sees", "Boris."), (Target(((2, 3),), ("person",)),))
    (two,) = read_character_spans(lines(path, [{"text": text, "spans": spans[1:]}]))
    assert two.targets == (Target(((0, 2), (2, 3)), ("more",)),)
    for span, message in (
        ({"start": 4, "end": 6, "label": "x"}, "span 1: .4, 6. holds white space only"),
        ({"start": 4, "end": 60, "label": "x"}, "expected 0 <= start < end <= 17 characters"),
        ({"start": 4, "end": 6}, 'span 1: expected an object with "start", "end" and "label"'),
    ):
        with pytest.raises(InputError, match=message):
            read_character_spans(lines(path, [{"text": text, "spans": [span]}]))
    with pytest.raises(InputError, match='line 1: expected a "text" and a list of "spans"'):
        read_character_spans(lines(path, [{"text": text}]))


def test_python_labels_the_names_of_its_own_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = '''import re
LIMIT = 3
def total(rows, key):
    """Not a token of it."""
    found = re.match(key, LIMIT)
    for row in rows:
        found[row] = len(rows)  # a comment
    return found
'''
    for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j"):
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "broken.py").write_text("def :")
    monkeypatch.setattr("stemma.probing.python_edges.python_files", lambda: sorted(tmp_path.glob("?.py")))
    roles, scopes = python_edges("roles", 16), python_edges("scopes", 16)
    assert {name: len(part) for name, part in roles.items()} == {"train": 8, "dev": 1, "test": 1}
    sentence = scopes["train"][0]
    assert " ".join(sentence.words) == (
        "def total ( rows , key ) : found = re . match ( key , LIMIT ) for row in rows : "
        "found [ row ] = len ( rows ) return found"
    )
    named = [
        (sentence.words[target.spans[0][0]], role.labels[0], target.labels[0])
        for role, target in zip(roles["train"][0].targets, sentence.targets, strict=True)
    ]
    assert named == [
        ("re", "owner", "imported"), ("key", "argument", "parameter"), ("LIMIT", "argument", "module"),
        ("rows", "iterated", "parameter"), ("found", "container", "local"), ("row", "index", "local"),
        ("len", "called", "builtin"), ("rows", "argument", "parameter"), ("found", "returned", "local"),
    ]  # fmt: skip
    monkeypatch.setattr("stemma.probing.python_edges.python_files", lambda: [tmp_path / "broken.py"])
    with pytest.raises(InputError, match="too little source"):
        python_edges("roles")
