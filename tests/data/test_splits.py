import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.data import documents
from stemma.data.documents import Piece, whole
from stemma.data.splits import divide, is_held_out, plan_split
from stemma.errors import InputError


def pieces(texts: list[str]) -> list[Piece]:
    return [piece for text in texts for piece in whole([text], "here")]


def sides(texts: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """The documents on both sides."""
    split = plan_split(pieces(texts), fraction)
    found: tuple[list[str], list[str]] = [], []
    for held_out, piece in divide(pieces(texts), split):
        if piece.starts:
            found[held_out].append("")
        found[held_out][-1] += piece.text
    return found


def test_many_documents_are_divided_whole_disjoint_and_in_order():
    texts = [f"document {n}" for n in range(2000)]
    train, held_out = sides(texts, 0.1)
    assert sorted(train + held_out) == sorted(texts)
    assert train == [text for text in texts if text in set(train)]
    assert 150 < len(held_out) < 250  # 200 expected, standard deviation 13


def test_the_side_of_a_document_depends_on_its_content_only():
    texts = [f"document {n}" for n in range(500)]
    _, held_out = sides(texts, 0.1)
    _, of_others = sides(texts[::-1][:300] + ["new"] * 5, 0.1)
    assert set(of_others) - {"new"} == set(held_out) & set(texts[::-1][:300])
    _, more = sides(texts, 0.2)
    assert set(held_out) < set(more)


def test_the_hash_is_the_stated_one():
    """Written out again: if this changes, text once held out would be trained on."""
    for n in range(200):
        state = hashlib.blake2b(f"text {n}".encode(), digest_size=8, person=b"held out")
        assert is_held_out(f"text {n}", 0.3) == (int(state.hexdigest(), 16) / 2**64 < 0.3)


def test_equal_documents_are_on_one_side():
    train, held_out = sides([f"document {n % 50}" for n in range(500)], 0.2)
    assert held_out and not set(train) & set(held_out)


@given(
    texts=st.lists(st.text("ab \n", min_size=30, max_size=200).filter(str.strip), min_size=1, max_size=19),
    fraction=st.floats(0.05, 0.9),
    piece=st.integers(8, 50),
)
@settings(max_examples=150, deadline=None)
def test_of_few_documents_the_tails_are_held_out(texts, fraction, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", piece)
        train, held_out = sides(texts, fraction)
    assert len(held_out) == len(texts)
    # The head and the tail of each together are the text; a head may be empty, and then there is none.
    for text, tail in zip(texts, held_out, strict=True):
        head = text[: len(text) - len(tail)]
        assert text.endswith(tail) and (head in train or not head)
        wanted = int(len(text) * fraction)
        assert wanted - wanted // 10 <= len(tail) <= wanted
    assert sum(map(len, train + held_out)) == sum(map(len, texts))


def test_tail_begins_with_a_line_where_one_is_near():
    text = "".join(f"line {n}\n" for n in range(1000))
    (head,), (tail,) = sides([text], 0.5)
    assert head.endswith("\n") and tail.startswith("line") and head + tail == text


def test_tail_begins_with_a_word_where_there_are_no_lines():
    (head,), (tail,) = sides(["word " * 1000], 0.5)
    assert head.endswith("word ") and tail.startswith("word ")


def test_many_documents_all_on_one_side_are_divided_by_tails():
    train, held_out = sides(["the same text again"] * 30, 0.5)
    assert len(train) == len(held_out) == 30


def test_looking_stops_as_soon_as_the_division_is_known():
    seen = 0

    def endless() -> Iterator[Piece]:
        nonlocal seen
        while True:
            seen += 1
            yield Piece(f"document {seen}", True, "here")

    assert plan_split(endless(), 0.2).tails is None
    assert 20 <= seen < 100


def test_no_fraction_no_held_out_text():
    assert sides(["some text"], 0.0) == (["some text"], [])


def test_a_fraction_too_small_for_the_text():
    with pytest.raises(InputError, match="a fraction of 0.01 is less than one character in each of the 2 documents"):
        plan_split(pieces(["short", "shorter"]), 0.01)
