"""How well word vectors answer analogies and agree with people on the similarity of words.

Questions with a word that has no vector are counted and reported, and the scores are also given with these as wrong.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stemma.data.tables import numbered_lines
from stemma.data.vectors import WordVectors
from stemma.errors import InputError

BATCH = 512  # questions a matrix product
MULTIPLICATIVE_FLOOR = (
    1e-3  # Levy and Goldberg 2014, "Linguistic Regularities in Sparse and Explicit Word Representations"
)

Method = Literal["add", "multiply"]


@dataclass(frozen=True)
class AnalogyScore:
    """The result of a section of questions, or of several.

    Args:
        questions: how many there are. answered: how many had vectors for all four words. correct: of these.
    """

    questions: int
    answered: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Of the answered questions; 0 if there are none."""
        return self.correct / max(self.answered, 1)

    @property
    def accuracy_of_all(self) -> float:
        """Questions with unknown words counted as wrong."""
        return self.correct / max(self.questions, 1)


@dataclass(frozen=True)
class SimilarityScore:
    """Agreement with people on pairs of words.

    Args:
        pairs: how many there are. known: how many had vectors for both words.
        spearman: rank correlation over the known pairs. spearman_of_all: unknown pairs given a cosine of 0.
    """

    pairs: int
    known: int
    spearman: float
    spearman_of_all: float


def read_analogies(path: Path) -> dict[str, list[tuple[str, str, str, str]]]:
    """Read a file like questions-words.txt: sections ": name", and four words a line.

    Raises:
        InputError: no such file, another number of words, or questions before the first section.
    """
    sections: dict[str, list[tuple[str, str, str, str]]] = {}
    for number, line in numbered_lines(path):
        words = line.split()
        if not words:
            continue
        if words[0] == ":" or line.startswith(":"):
            sections[line.removeprefix(":").strip()] = []
        elif len(words) != 4:
            raise InputError(f"{path}, line {number}: {len(words)} words; expected four, or ': ' and a section's name")
        elif not sections:
            raise InputError(f"{path}, line {number}: a question before the first section ': name'")
        else:
            sections[next(reversed(sections))].append((words[0], words[1], words[2], words[3]))
    if not any(sections.values()):
        raise InputError(f"{path}: no questions in it")
    return sections


def read_similarities(path: Path) -> list[tuple[str, str, float]]:
    """Read pairs of words and a number, separated by tabs, commas or blanks; lines with "#" and one header are skipped.

    Raises:
        InputError: no such file, or a line of another form.
    """
    pairs: list[tuple[str, str, float]] = []
    for number, line in numbered_lines(path):
        if not line.strip() or line.startswith("#"):
            continue
        fields = next(parts for mark in ("\t", ",", None) if len(parts := line.split(mark)) > 1 or mark is None)
        try:
            pairs.append((fields[0].strip(), fields[1].strip(), float(fields[2])))
        except (IndexError, ValueError):
            if number > 1:
                raise InputError(f"{path}, line {number}: expected two words and a number") from None
    if not pairs:
        raise InputError(f"{path}: no pairs of words in it")
    return pairs


def answer_analogies(
    vectors: WordVectors,
    sections: dict[str, list[tuple[str, str, str, str]]],
    *,
    method: Method = "add",
    restrict: int | None = 300_000,
    fold_case: bool = True,
) -> dict[str, AnalogyScore]:
    """Answer "a is to b as c is to what?" by the nearest word that is none of the three; return a score a section.

    "semantic", "syntactic" (sections whose name begins with "gram") and "total" follow the sections.

    Args:
        method: "add": the largest cos(x, b - a + c) (3CosAdd); "multiply": the largest
            cos'(x, b) cos'(x, c) / (cos'(x, a) + 0.001) with cos' = (cos + 1) / 2 (3CosMul).
        restrict: use only the first so many words, which are the frequent ones.
        fold_case: compare in capital letters; of words that differ in case only, the first one counts.
    """
    words = [_folded(word, fold_case) for word in vectors.words[:restrict]]
    rows: dict[str, list[int]] = {}
    for row, word in enumerate(words):
        rows.setdefault(word, []).append(row)
    scores = {}
    for name, questions in sections.items():
        folded = [[_folded(word, fold_case) for word in question] for question in questions]
        known = [question for question in folded if all(word in rows for word in question)]
        correct = 0
        for start in range(0, len(known), BATCH):
            batch = known[start : start + BATCH]
            answers = _answer(vectors.directions[: len(words)], batch, rows, method)
            correct += sum(words[answer] == question[3] for answer, question in zip(answers, batch, strict=True))
        scores[name] = AnalogyScore(len(questions), len(known), correct)
    syntactic = [score for name, score in scores.items() if name.startswith("gram")]
    semantic = [score for name, score in scores.items() if not name.startswith("gram")]
    everything = list(scores.values())
    return scores | {"semantic": _sum(semantic), "syntactic": _sum(syntactic), "total": _sum(everything)}


def score_similarities(
    vectors: WordVectors,
    pairs: Sequence[tuple[str, str, float]],
    *,
    restrict: int | None = 300_000,
    fold_case: bool = True,
) -> SimilarityScore:
    """Correlate cosines with people's numbers (Spearman; tied ranks are averaged).

    Args:
        restrict, fold_case: see `answer_analogies`.
    """
    rows = {_folded(word, fold_case): row for row, word in reversed(list(enumerate(vectors.words[:restrict])))}
    cosines = np.zeros(len(pairs))
    known = np.zeros(len(pairs), bool)
    for number, (first, second, _) in enumerate(pairs):
        one, other = rows.get(_folded(first, fold_case)), rows.get(_folded(second, fold_case))
        if one is not None and other is not None:
            known[number] = True
            cosines[number] = vectors.directions[one].astype(np.float64) @ vectors.directions[other]
    human = np.array([number for _, _, number in pairs])
    return SimilarityScore(
        len(pairs), int(known.sum()), spearman(cosines[known], human[known]), spearman(cosines, human)
    )


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of the ranks of two arrays [n], tied ones averaged; 0 where one of them does not vary."""
    ranks = [_ranks(array) for array in (first, second)]
    centred = [rank - rank.mean() if len(rank) else rank for rank in ranks]
    scale = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum() / scale) if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, the average for ties, float64 [n]."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def _answer(
    directions: np.ndarray, questions: Sequence[Sequence[str]], rows: dict[str, list[int]], method: Method
) -> np.ndarray:
    """Return the row of the answer to each question, int64 [questions]."""
    a, b, c = (directions[[rows[question[place]][0] for question in questions]] for place in range(3))
    if method == "add":
        scores = (b - a + c) @ directions.T
    else:
        near = [(part @ directions.T + 1) / 2 for part in (a, b, c)]
        scores = near[1] * near[2] / (near[0] + np.float32(MULTIPLICATIVE_FLOOR))
    for number, question in enumerate(questions):
        scores[number, [row for word in question[:3] for row in rows[word]]] = -np.inf
    return scores.argmax(axis=1)


def _sum(scores: Iterable[AnalogyScore]) -> AnalogyScore:
    parts = list(scores)
    return AnalogyScore(
        sum(part.questions for part in parts), sum(part.answered for part in parts), sum(part.correct for part in parts)
    )


def _folded(word: str, fold_case: bool) -> str:
    return word.upper() if fold_case else word
