"""Words as ELMo reads them: the bytes of each, between marks, padded to one length (allenai/bilm-tf, data.py).

Ids are those of training, 0 to 260. The published code adds 1 to them outside of training, so that 0 can stand for a
word that is none; here rows of words have lengths instead, and the zero row that goes with it is not needed.
"""

from collections.abc import Sequence

import numpy as np

CHARACTERS = 261
BEGIN_SENTENCE, END_SENTENCE, BEGIN_WORD, END_WORD, PADDING = range(256, CHARACTERS)

# How a vocabulary for the softmax begins, and in ours the word that stands for a line end.
SENTENCE_END, SENTENCE_BEGIN, UNKNOWN = "</S>", "<S>", "<UNK>"
LINE_END = "\n"


def spell(words: Sequence[str], longest: int = 50) -> np.ndarray:
    """Return int16 [words, longest]: a mark, the word's UTF-8 bytes (as many as there is room for), a mark, padding."""
    spelled = np.full((len(words), longest), PADDING, np.int16)
    spelled[:, 0] = BEGIN_WORD
    for row, word in zip(spelled, words, strict=True):
        content = word.encode("utf-8", "ignore")[: longest - 2]
        row[1 : len(content) + 1] = np.frombuffer(content, np.uint8)
        row[len(content) + 1] = END_WORD
    return spelled


def spell_boundaries(longest: int = 50) -> np.ndarray:
    """Return int16 [2, longest]: the begin and the end of a sentence, words of one mark that no text contains."""
    spelled = np.full((2, longest), PADDING, np.int16)
    spelled[:, 0], spelled[:, 2] = BEGIN_WORD, END_WORD
    spelled[:, 1] = BEGIN_SENTENCE, END_SENTENCE
    return spelled
