"""Passages and blanks, drawn from a corpus of documents that are known."""

import numpy as np
import pytest

from stemma.data.corpora import CorpusSource
from stemma.data.shards import prepare
from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.data.tokenizers import train_tokenizer
from stemma.errors import InputError
from stemma.evaluation.blanks import Blank
from stemma.insights.passages import draw_choices, draw_passages, make_blanks, make_several_blanks

WORDS = ("amber", "birch", "cedar", "dune", "elm", "fern", "gorse", "heath", "iris", "juniper")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> TokenizedSplit:
    """Half of 60 documents of 20 to 99 words, and of a few of one word."""
    folder, rng = tmp_path_factory.mktemp("passages"), np.random.default_rng(0)
    sizes = [*rng.integers(20, 100, 60).tolist(), 1, 1, 1]
    lines = [" ".join(rng.choice(WORDS, size).tolist()) for size in sizes]
    text = folder / "text.txt"
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = train_tokenizer(lines, "bpe", 300)
    return prepare(CorpusSource(str(text), documents="line", held_out=0.5), tokenizer, folder / "cache").held_out


def documents(split: TokenizedSplit) -> list[tuple[int, ...]]:
    """The tokens of each document, cut at the separators."""
    tokens = split.tokens.read(0, len(split.tokens)).tolist()
    starts = [place for place, token in enumerate(tokens) if token == split.separator]
    return [tuple(tokens[a + 1 : b]) for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


def holds(document: tuple[int, ...], piece: tuple[int, ...]) -> bool:
    return any(document[place : place + len(piece)] == piece for place in range(len(document) - len(piece) + 1))


def test_passages_lie_inside_one_document(split: TokenizedSplit) -> None:
    there = documents(split)
    assert 20 < len(there) == split.documents
    passages = draw_passages(split, 100, 30)
    assert {len(passage) for passage in passages} == {30} and len(passages) == 100
    for passage in passages:
        assert split.separator not in passage
        assert any(holds(document, passage) for document in there)


def test_passages_come_from_everywhere(split: TokenizedSplit) -> None:
    """Each place of a long passage about as often: the places are drawn one to each of equal parts of the text."""
    there = documents(split)
    longest = max(map(len, there))
    rooms = {document: max(len(document) - 24, 0) for document in there}  # passages of 25 tokens in each
    count = 4 * sum(rooms.values())
    drawn = draw_passages(split, count, 25)
    found = {document: sum(holds(document, passage) for passage in drawn) for document in there}
    for document, room in rooms.items():
        assert abs(found[document] - 4 * room) <= 2
    # The whole of the longest document is a passage too, its first token and its last included.
    (whole,) = {passage for passage in draw_passages(split, 50, longest)}
    assert whole in there


def test_the_same_seed_draws_the_same_passages(split: TokenizedSplit) -> None:
    assert draw_passages(split, 20, 30) == draw_passages(split, 20, 30)
    assert draw_passages(split, 20, 30, seed=1) != draw_passages(split, 20, 30)


def test_no_document_is_long_enough(split: TokenizedSplit) -> None:
    with pytest.raises(InputError, match="no held-out document has 5000 tokens"):
        draw_passages(split, 20, 5000)


@pytest.fixture(scope="module")
def passages() -> list[tuple[int, ...]]:
    """No token is twice, so that it is known where each piece is from."""
    return [tuple(range(100 * number, 100 * number + 40)) for number in range(60)]


def test_blanks_rebuild_the_passages(passages: list[tuple[int, ...]]) -> None:
    blanks = make_blanks(passages, 6)
    assert [(*blank.before, *blank.piece, *blank.after) for blank in blanks] == passages
    assert {len(blank.piece) for blank in blanks} == set(range(1, 7))
    assert min(len(blank.before) for blank in blanks) >= 8 and min(len(blank.after) for blank in blanks) >= 8
    assert make_blanks(passages, 6) == blanks != make_blanks(passages, 6, seed=1)
    (tight,) = make_blanks([tuple(range(17))], 1)  # one place only
    assert tight == Blank(tuple(range(8)), (8,), tuple(range(9, 17)))


def test_choices_are_pieces_of_the_same_length_from_other_passages(passages: list[tuple[int, ...]]) -> None:
    blanks = make_blanks(passages, 6)
    choices = draw_choices(blanks, 3)
    for blank, options in zip(blanks, choices, strict=True):
        assert options[0] == blank and len(options) == 4
        assert {(option.before, option.after) for option in options} == {(blank.before, blank.after)}
        assert {len(option.piece) for option in options} == {len(blank.piece)}
        assert len({option.piece for option in options}) == 4
        for option in options[1:]:
            sources = [passage for passage in passages if holds(passage, option.piece)]
            assert len(sources) == 1 and not holds(sources[0], blank.piece)  # as it stands in another passage
    assert draw_choices(blanks, 3) == choices != draw_choices(blanks, 3, seed=1)


def test_choices_differ_where_passages_are_alike() -> None:
    """Of passages in which hardly anything differs: no wrong answer is the right one, or there twice."""
    passages = [(*[1] * 20, 2 + number % 3, *[1] * 20) for number in range(12)]
    for options in draw_choices(make_blanks(passages, 2), 3):
        pieces = [option.piece for option in options]
        assert len(set(pieces)) == len(pieces) <= 4


def test_several_blanks_do_not_touch(passages: list[tuple[int, ...]]) -> None:
    found = make_several_blanks(passages, 3, 6)
    sizes, firsts, lasts = set(), set(), set()
    for spans in found:
        assert len(spans) == 3
        sizes |= {stop - start for start, stop in spans}
        firsts.add(spans[0][0])
        lasts.add(spans[-1][1])
        assert spans[0][0] >= 0 and spans[-1][1] <= 40
        assert all(stop < start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False))
    assert sizes == set(range(1, 7))
    assert min(firsts) == 0 and max(lasts) == 40  # the edges are reached
    assert make_several_blanks(passages, 3, 6) == found != make_several_blanks(passages, 3, 6, seed=1)
    assert make_several_blanks([tuple(range(5))], 3, 1) == [[(0, 1), (2, 3), (4, 5)]]
    with pytest.raises(InputError, match="3 blanks of up to 1 tokens do not fit into 4 tokens"):
        make_several_blanks([tuple(range(4))], 3, 1)
