"""A vector for each word of a sentence, in every layer of an ELMo; and one for each text, as other encoders give."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stemma.data.collation import batches_by_length
from stemma.errors import InputError
from stemma.families.elmo.model import ELMo
from stemma.families.elmo.words import spell

Layers = Literal["all", "average"] | int
MOST_WORDS = 200_000  # different words whose vectors are kept
POOL = 2048  # sentences sorted by length together


class SpelledWords:
    """Reads the characters of a word when it comes for the first time.

    Args:
        model: in eval mode. most_words: whose vectors are kept.
    """

    def __init__(self, model: ELMo, most_words: int = MOST_WORDS) -> None:
        self.model, self.most_words = model, most_words
        self._rows: dict[str, int] = {}
        self._vectors = model.words.projection.weight.new_empty(0, model.config.projection)

    def __call__(self, words: Sequence[str]) -> Tensor:
        """Return float [words, projection], what the context reads of each word."""
        new = list(dict.fromkeys(word for word in words if word not in self._rows))
        if len(self._rows) + len(new) > self.most_words:
            self._rows, self._vectors, new = {}, self._vectors[:0], list(dict.fromkeys(words))
        if new:
            new.sort(key=len)  # so that short words are not padded to the length of long ones
            characters = torch.from_numpy(spell(new, self.model.config.longest_word))
            vectors = self.model.words(characters.to(self._vectors.device))
            self._rows |= {word: len(self._rows) + number for number, word in enumerate(new)}
            self._vectors = torch.cat([self._vectors, vectors])
        return self._vectors[[self._rows[word] for word in words]]


class WordStates:
    """Computes the layers of sentences; the characters of a word are read when it comes for the first time.

    A sentence's vectors do not depend on what is computed beside or before it, unless `stateful`: then the LSTM goes
    on, in sentence number i of a call, from where it was after sentence number i of the call before. So does the
    published code, whether its user wants it or not.

    Args:
        model: in eval mode. batch_words: about so many words are computed at once. most_words: whose vectors are kept.
    Raises:
        InputError: the model is in training mode, or `stateful` and no LSTM.
    """

    def __init__(
        self, model: ELMo, *, stateful: bool = False, batch_words: int = 2048, most_words: int = MOST_WORDS
    ) -> None:
        if model.training:
            raise InputError("the model is in training mode, where dropout is random: call model.eval() first")
        if stateful and model.config.architecture != "lstm":
            raise InputError(f"an ELMo of architecture {model.config.architecture} has no state to carry on")
        self.model, self.stateful, self.batch_words = model, stateful, batch_words
        self._words = SpelledWords(model, most_words)
        self._boundaries: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the state, so that the next sentences are the first ones."""
        self._states: Any = None

    @torch.inference_mode()
    def __call__(
        self, sentences: Sequence[Sequence[str]], report: Callable[[int], None] = lambda done: None
    ) -> list[np.ndarray]:
        """Return float32 [1 + layers, words, 2 * projection] of each sentence, in their order.

        Args:
            sentences: the words of each, at least one. report: called with the number of sentences just done.
        """
        _require_words(sentences)
        results: list[Any] = [None] * len(sentences)
        for numbers in self._batches(sentences):
            for number, layers in zip(numbers, self._layers([sentences[number] for number in numbers]), strict=True):
                results[number] = layers
            report(len(numbers))
        return results

    def _batches(self, sentences: Sequence[Sequence[str]]) -> Iterator[list[int]]:
        if self.stateful:
            yield list(range(len(sentences)))
            return
        yield from batches_by_length([len(words) for words in sentences], self.batch_words)

    def _layers(self, sentences: Sequence[Sequence[str]]) -> Iterator[np.ndarray]:
        lengths = torch.tensor([len(words) for words in sentences])
        vectors = self._words([word for words in sentences for word in words])
        padded = vectors.new_zeros(len(sentences), int(lengths.max()), vectors.shape[1])
        real = torch.arange(padded.shape[1]) < lengths.unsqueeze(1)
        padded[real.to(padded.device)] = vectors
        states = self._carried(len(sentences)) if self.stateful else None
        if self._boundaries is None:
            self._boundaries = self.model.boundaries()
        layers, states = self.model.layers(
            padded, lengths.to(padded.device), boundaries=self._boundaries, states=states
        )
        if self.stateful:
            self._states = states
        found = layers.float().cpu().numpy()
        for number, length in enumerate(lengths.tolist()):
            yield found[:, number, :length]

    def _carried(self, batch: int) -> Any:
        """Return the states of the first `batch` rows; of more than there were before, zeros for the new ones."""
        if self._states is None:
            return None
        return [state.resized(batch) for state in self._states]


def _require_words(sentences: Sequence[Sequence[str]]) -> None:
    empty = next((number for number, words in enumerate(sentences, 1) if not words), None)
    if empty is not None:
        raise InputError(f"sentence {empty} has no words")


def layers_named(name: str | None, model: ELMo, of_words: bool = True) -> Layers:
    """Return which layers "all", "average" or a number stands for; None: all of words, the average for a text.

    Raises:
        InputError: there is no such layer, or all are asked for where a text has one vector.
    """
    if name is None:
        return "all" if of_words else "average"
    if name == "average":
        return "average"
    if name == "all" and of_words:
        return "all"
    if not name.isdecimal() or int(name) > model.config.layers:
        choices = "all, average" if of_words else "average"
        raise InputError(f"layers: '{name}', expected {choices} or a number from 0 to {model.config.layers}")
    return int(name)


def word_vectors(
    states: WordStates,
    sentences: Sequence[Sequence[str]],
    wanted: Layers = "all",
    report: Callable[[int], None] = lambda done: None,
) -> Iterator[np.ndarray]:
    """Yield float32 [layers, words, width], or [words, width], of each sentence; a few thousand are held at once."""
    _require_words(sentences)  # not of a few thousand only, so that the sentence is named by its number
    size = 1 if states.stateful else POOL
    for start in range(0, len(sentences), size):
        for layers in states(sentences[start : start + size], report):
            yield layers if wanted == "all" else layers.mean(0) if wanted == "average" else layers[wanted]


def embed_sentences(
    model: ELMo,
    sentences: Sequence[Sequence[str]],
    *,
    wanted: Literal["average"] | int = "average",
    pooling: str = "mean",
    normalize: bool = False,
    stateful: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Return float32 [sentences, 2 * projection]: mean or maximum over the words, of one layer or the average of all.

    Raises:
        InputError: another pooling; see `WordStates`.
    """
    if pooling not in ("mean", "max"):
        raise InputError(f"pooling is '{pooling}', expected mean or max of an ELMo")
    vectors = np.empty((len(sentences), model.config.hidden), np.float32)
    for number, words in enumerate(word_vectors(WordStates(model, stateful=stateful), sentences, wanted, report)):
        vectors[number] = words.mean(0) if pooling == "mean" else words.max(0)
    if normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors
