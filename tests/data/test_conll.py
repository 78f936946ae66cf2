import gzip
import os
import re
from pathlib import Path

import pytest

from stemma.data.conll import detect_scheme, read_conll, to_iob2
from stemma.errors import InputError

# Published data sets, which the project does not contain; any folder with the files below will do.
PUBLISHED = Path(os.environ.get("STEMMA_PUBLISHED_DATA", Path(__file__).parents[3] / "shared/data"))
IOB2 = "B-LOC I-LOC B-LOC O B-PER B-LOC I-LOC I-LOC"
SCHEMES = {
    "IOB1": "I-LOC I-LOC B-LOC O I-PER I-LOC I-LOC I-LOC",
    "IOB2": IOB2,
    "BIOES": "B-LOC E-LOC S-LOC O S-PER B-LOC I-LOC E-LOC",
}


def write(path: Path, content: str) -> Path:
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def fails(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_detected_and_becomes_iob2(tmp_path: Path, scheme: str) -> None:
    tags = SCHEMES[scheme].split()
    assert detect_scheme([["O", "O"], tags]) == scheme
    assert to_iob2(tags) == IOB2.split()
    path = write(tmp_path / "a.conll", "".join(f"w {tag}\n" for tag in tags))
    assert read_conll(path) == [(["w"] * 8, IOB2.split())]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("O I-A E-A I-A", "O B-A I-A B-A"),  # E- closes
        ("S-A I-A", "B-A B-A"),  # S- closes
        ("E-A O E-A", "B-A O B-A"),  # an E- with nothing open is an entity of one word
        ("B-A I-B I-B", "B-A B-B I-B"),  # another type begins another entity
        ("B-A-x I-A-x", "B-A-x I-A-x"),  # types may hold a hyphen
    ],
)
def test_tags_against_their_scheme(given: str, expected: str) -> None:
    assert to_iob2(given.split()) == expected.split()


def test_conll_2003_layout(tmp_path: Path) -> None:
    text = (
        "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\n\nGerman JJ I-NP I-MISC\r\n"
        "-DOCSTART- -X- -X- O\n \nPeter NNP I-NP I-PER"
    )
    expected = [(["EU", "rejects"], ["B-ORG", "O"]), (["German"], ["B-MISC"]), (["Peter"], ["B-PER"])]
    assert read_conll(write(tmp_path / "eng.train", text)) == expected
    assert read_conll(write(tmp_path / "eng.train.gz", text)) == expected
    parts_of_speech = read_conll(write(tmp_path / "eng.train", text), label_column=2)
    assert parts_of_speech == [(["EU", "rejects"], ["NNP", "VBZ"]), (["German"], ["JJ"]), (["Peter"], ["NNP"])]


def test_tabs_divide_where_there_are_any(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "New York\tB-LOC\n\u00a0\tO\n#\tO\n\t\n!\tO\n\ufeff\n")
    assert read_conll(path) == [(["New York", "\u00a0", "#"], ["B-LOC", "O", "O"]), (["!"], ["O"])]


def test_conllu_leaves_out_what_is_no_word(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.conllu",
        "# text = vámonos ya\n1-2\tvámonos\t_\t_\n1\tvamos\tir\tVERB\n2\tnos\tnosotros\tPRON\n"
        "2.1\tx\tx\tX\n3\tya\tya\tADV\n\n",
    )
    expected = [(["vamos", "nos", "ya"], ["VERB", "PRON", "ADV"])]
    assert read_conll(path, word_column=2, label_column=4) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\na X O\nb O\n", ", line 3: 2 columns; expected 3 as in line 2, or a blank line"),
        ("a\tO\nb\n", ", line 2: 1 columns; expected 2 as in line 1, or a blank line"),
        ("a\nb\n", ", line 1: no column 1 for the word; there are 1, expected a word and a label"),
        ("a\tO\nb\t\n", ", line 2: the label in column 2 is empty"),
        ("a\tO\n\tO\n", ", line 2: the word in column 1 is empty"),
        ("a B-X\nb O\nc X\n", ", line 3: label 'X'; expected O, or B-, I-, E- or S- and a type"),
        ("a B-X\nb B-\n", ", line 2: label 'B-'; expected O, or B-, I-, E- or S- and a type"),
        ("\n-DOCSTART- O\n", ": no sentences; expected a word and its label on each line"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path / "a.conll", content)
    with fails(f"{path}{message}"):
        read_conll(path)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "a O\n")
    for column in 0, 3, -1:
        with fails(f"{path}, line 1: no column {column} for the label; there are 2, expected a word and a label"):
            read_conll(path, label_column=column)
    with fails(f"{path}, line 1: no column 4 for the word; there are 2, expected a word and a label"):
        read_conll(path, word_column=4)


@pytest.mark.skipif(not (PUBLISHED / "probing").is_dir(), reason="published data sets are not here")
def test_published_sets() -> None:
    """Sentences as published; words as the lines of the files that are not blank, counted by other means."""
    wnut = PUBLISHED / "probing/wnut17"
    for name, sentences, words in ("wnut17train.conll", 3394, 62730), ("emerging.dev.conll", 1009, 15733):
        found = read_conll(wnut / name)
        assert (len(found), sum(len(tags) for _, tags in found)) == (sentences, words)
        assert detect_scheme(tags for _, tags in found) == "IOB2"
    trees = read_conll(PUBLISHED / "probing/en_ewt-ud-test.conllu.gz", word_column=2, label_column=4)
    assert (len(trees), sum(len(tags) for _, tags in trees)) == (2077, 25094)
