"""How an ELMo reads for a task: words as they stand between white space, of any spelling."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stemma.families.elmo.words import spell, spell_boundaries

MARK = 1  # between the texts of a pair; 0 is padding


class WordNumbers:
    """Gives words numbers as they come, and their spelling for the numbers; what tasks ask of a tokenizer.

    Args:
        longest: characters of a word, its marks included.
    """

    pad, unknown, fingerprint = 0, None, "words"

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._numbers: dict[str, int] = {}
        self._words = ["", ""]  # of padding and of the mark

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the numbers of the words of each text."""
        return [[self._number(word) for word in text.split()] for text in texts]

    def spell(self, numbers: Sequence[int]) -> np.ndarray:
        """Return int16 [words, longest], the characters of words; the mark is the end of a sentence."""
        spelled = spell([self._words[number] for number in numbers], self.longest)
        spelled[np.asarray(numbers) == MARK] = spell_boundaries(self.longest)[1]
        return spelled

    def save(self, directory: Path) -> None:
        """Write nothing: there is nothing to keep."""

    def _number(self, word: str) -> int:
        number = self._numbers.setdefault(word, len(self._words))
        if number == len(self._words):
            self._words.append(word)
        return number
