import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from stemma.data import documents
from stemma.data.documents import Piece, by_line, by_paragraph, lines, whole

TEXTS = st.lists(st.sampled_from(["", "", "a", "bc d", "e  f ", "ghij klmno pqrst", " x"]), max_size=40).map("\n".join)
PIECES = st.integers(8, 20)


def joined(pieces: list[Piece]) -> list[str]:
    texts: list[str] = []
    for piece in pieces:
        if piece.starts:
            texts.append("")
        texts[-1] += piece.text
    return texts


def chunked(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def blocks_of_lines(text: str) -> list[str]:
    """Paragraphs, the plain way."""
    paragraphs: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            paragraphs[-1].append(line)
        else:
            paragraphs.append([])
    return ["\n".join(paragraph) for paragraph in paragraphs if paragraph]


EXPECTED = {
    whole: lambda text: [text] if text.strip() else [],
    by_line: lambda text: [line for line in text.split("\n") if line.strip()],
    by_paragraph: blocks_of_lines,
}


@pytest.mark.parametrize("split", EXPECTED)
@given(text=TEXTS, piece=PIECES, chunk=st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_documents_are_those_of_the_plain_way_in_pieces_of_bounded_size(split, text, piece, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", piece)
        pieces = list(split(chunked(text, chunk), "here"))
        at_once = list(split([text], "here"))
    if text.strip() or split is not whole:  # white space longer than half a piece is not recognised as blank
        assert joined(pieces) == EXPECTED[split](text)
    assert all(0 < len(part.text) <= piece for part in pieces)
    assert pieces == at_once


def test_origin_names_the_line_where_the_document_begins():
    text = "\n\nfirst\nsecond\r\n  \nthird"
    assert [(piece.text, piece.origin) for piece in by_paragraph([text], "f")] == [
        ("first\nsecond\r", "f, line 3"),
        ("third", "f, line 6"),
    ]
    assert [(piece.text, piece.origin) for piece in by_line([text], "f")] == [
        ("first", "f, line 3"),
        ("second", "f, line 4"),
        ("third", "f, line 6"),
    ]


def test_only_line_feeds_end_a_line():
    assert list(lines(["a\x0bb\u2028c\rd\n", "e"])) == ["a\x0bb\u2028c\rd", "e"]


def test_tokens_of_the_pieces_are_those_of_the_whole(monkeypatch):
    """With the splitting rule of GPT-2, as the `tokenizers` library has it."""
    monkeypatch.setattr(documents, "PIECE", 200)
    text = "".join(f"line {n}, with  spaces \n" if n % 3 else f"\n\n\tindented {n}'s\nend{n}.\n" for n in range(200))
    text += "no line end here but spaces " * 50
    pieces = [piece.text for piece in whole([text], "")]
    assert len(pieces) > 20
    level = ByteLevel(add_prefix_space=False)
    separate = [token for piece in pieces for token, _ in level.pre_tokenize_str(piece)]
    assert separate == [token for token, _ in level.pre_tokenize_str(text)]


def test_text_without_any_space_is_cut_at_the_limit(monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 10)
    assert [len(piece.text) for piece in by_line(["x" * 25], "")] == [10, 10, 5]


def test_a_very_long_row_is_cut_in_linear_time():
    pieces = list(whole(["word " * 10_000_000], ""))  # 50 MB at once
    assert sum(len(piece.text) for piece in pieces) == 50_000_000
