"""The targets of a part of the data over the tokens of a model, ready to be batched."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stemma.probing.edges import Sentence, label_matrix
from stemma.probing.layer_cache import Layers
from stemma.probing.span_probe import Spans, View


class Examples:
    """Targets whose spans the model has read to their ends, in the order of the sentences.

    Attributes:
        kept: int64 [targets], which of all targets they are; `dropped`: how many they are not. labels: bool
        [targets, classes]. sentence: int64 [targets]. starts: int64 [sentences + 1], where the targets of each begin.
    """

    def __init__(self, sentences: Sequence[Sentence], layers: Layers, names: Sequence[str]) -> None:
        self.layers = layers
        owners, places = [], []
        for number, sentence in enumerate(sentences):
            first, last = layers.first[number], layers.last[number]
            for target in sentence.targets:
                owners.append(number)
                places.append([_pieces(first, last, start, end) for start, end in target.spans])
        self.sentence = np.array(owners)
        spans = np.array(places, np.int64)  # [targets, sides, 2]
        self.kept = np.flatnonzero((spans[..., 1] > spans[..., 0]).all(1))
        self.dropped = len(spans) - len(self.kept)
        self.sentence, spans = self.sentence[self.kept], spans[self.kept]
        begins = spans[..., 0] + layers.starts[self.sentence][:, None]
        self.begins, self.sizes = begins.T, (spans[..., 1] - spans[..., 0]).T  # [sides, targets]
        self.labels = label_matrix(sentences, names)[self.kept]
        self.starts = np.searchsorted(self.sentence, np.arange(len(sentences) + 1))
        self._owner = np.repeat(np.arange(len(sentences)), np.diff(layers.starts))  # of each token

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def sides(self) -> int:
        """How many spans a target has."""
        return len(self.begins)

    def sentences_with_targets(self) -> np.ndarray:
        """Return the numbers of the sentences that have any, int64 [sentences]."""
        return np.flatnonzero(np.diff(self.starts))

    def part(self, sentences: np.ndarray) -> "Examples":
        """Return the examples of these sentences alone, under their own numbers."""
        chosen = self.targets_of(np.sort(sentences))
        part = copy.copy(self)
        part.kept, part.sentence, part.labels = self.kept[chosen], self.sentence[chosen], self.labels[chosen]
        part.begins, part.sizes = self.begins[:, chosen], self.sizes[:, chosen]
        part.starts = np.searchsorted(part.sentence, np.arange(len(self.starts)))
        return part

    def targets_of(self, sentences: np.ndarray) -> np.ndarray:
        """Return the numbers of the targets of sentences, int64 [targets]."""
        return ranges(self.starts[sentences], np.diff(self.starts)[sentences])

    def batch(self, targets: np.ndarray, view: View, device: torch.device) -> tuple[Tensor, list[Spans], Tensor]:
        """Return what `SpanProbes` takes of targets, and their labels, float [targets, classes]."""
        rows = [ranges(begins[targets], sizes[targets]) for begins, sizes in zip(self.begins, self.sizes, strict=True)]
        unique, inverse = np.unique(np.concatenate(rows), return_inverse=True)
        tokens = np.split(inverse, np.cumsum([len(side) for side in rows])[:-1])
        spans = []
        for side, sizes in zip(tokens, self.sizes, strict=True):
            starts = np.cumsum([0, *sizes[targets][:-1]])
            spans.append(Spans(torch.from_numpy(side).to(device), torch.from_numpy(starts).to(device)))
        labels = torch.from_numpy(self.labels[targets]).to(device, torch.float32)
        return self._states(unique, view).to(device), spans, labels

    def _states(self, rows: np.ndarray, view: View) -> Tensor:
        """Return float [tokens, neighbours, layers, hidden] of the view's layers; zeros outside of a sentence."""
        states = self.layers.states[:, view.lowest : view.highest + 1]
        if not view.radius:
            return states[torch.from_numpy(rows)].float().unsqueeze(1)
        around = rows[:, None] + np.arange(-view.radius, view.radius + 1)
        inside = np.clip(around, 0, len(self._owner) - 1)
        real = (inside == around) & (self._owner[inside] == self._owner[rows][:, None])
        return states[torch.from_numpy(inside)].float() * torch.from_numpy(real)[..., None, None]


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the numbers of ranges, one behind the other, int64 [sum of sizes]."""
    before = np.cumsum(sizes) - sizes
    numbers: np.ndarray = np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))
    return numbers


def _pieces(first: np.ndarray, last: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Return the pieces of words `start` to `end`; none if one of the words has none."""
    begins, ends = first[start:end], last[start:end]
    return (int(begins[0]), int(ends[-1])) if (ends > begins).all() else (0, 0)
