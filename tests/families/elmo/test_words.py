"""Words as ids of characters, as allenai/bilm-tf has them in training."""

from stemma.families.elmo.words import spell, spell_boundaries


def test_bytes_between_marks() -> None:
    assert spell(["a", "é", ""], 6).tolist() == [
        [258, 97, 259, 260, 260, 260],
        [258, 0xC3, 0xA9, 259, 260, 260],
        [258, 259, 260, 260, 260, 260],
    ]


def test_long_words_are_cut_by_bytes_and_keep_their_mark() -> None:
    (row,) = spell(["x" * 47 + "é" + "y"]).tolist()  # 48 bytes fit, which is half of the é
    assert row == [258, *[120] * 47, 0xC3, 259]


def test_ends_of_sentences_are_words_that_no_text_contains() -> None:
    assert spell_boundaries(5).tolist() == [[258, 256, 259, 260, 260], [258, 257, 259, 260, 260]]
