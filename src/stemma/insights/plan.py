"""What decides a comparison, and how large it is for a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from stemma.data.corpora import CorpusSource
from stemma.insights.arms import Scale

VERSION = 1

# Of a default budget of 8 minutes on two cores: tokens of text for each model, found by trying on such a machine.
_MINUTES, _TOKENS = 8.0, 205_000
# Layers, hidden, heads, vocabulary, batch, length, and what a token costs as a multiple of the first. A larger model is
# taken once it would see about as many tokens as it has parameters.
_SIZES = (
    (2, 128, 4, 1024, 8, 64, 1),
    (4, 192, 6, 2048, 16, 128, 5),
    (6, 256, 8, 4096, 32, 128, 15),
    (8, 512, 8, 8192, 32, 256, 80),
    (12, 768, 12, 16384, 64, 256, 300),
)
_ENOUGH = 8


@dataclass(frozen=True)
class Plan:
    """Everything that decides the results.

    Args:
        text, field, documents: the corpus (see `CorpusSource`). labels, label_text, label_column: a table of labelled
            texts, or "python" (see python_labels.py), or None: no fine-tuning.
        arms: names of `ARMS`. seeds: each is a whole repetition. scale: sizes, chosen for a budget of `minutes`.
        examples: labelled ones to train on, at most. epochs: of fine-tuning.
        passages, blanks: how many are scored, of so many tokens. longest_blank: in tokens.
        several_blanks: of a GLM: passages with three blanks each that are scored in several orders.
        long_texts: of a Mistral: texts of 20 windows that are read through a rolling cache and at once.
    """

    text: str
    field: str
    documents: str
    labels: str | None
    label_text: str
    label_column: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: Scale
    minutes: float = 8.0
    held_out: float = 0.05
    examples: int = 96
    epochs: int = 15
    passages: int = 48
    passage_tokens: int = 64
    blanks: int = 192
    blank_tokens: int = 64
    longest_blank: int = 6
    several_blanks: int = 0
    long_texts: int = 0
    version: int = VERSION

    @property
    def source(self) -> CorpusSource:
        """The corpus."""
        return CorpusSource(self.text, self.field, self.documents, self.held_out)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Plan":
        """Return the plan that was made a dictionary."""
        return TypeAdapter(cls).validate_python(content)


def scale_for(minutes: float, arms: int, seeds: int) -> Scale:
    """Return model size and training for a budget in minutes on two cores; tokens are shared by all models."""
    share = minutes / _MINUTES * 18 / (arms * seeds)  # of the default's six frameworks and three seeds
    *size, cost = next(row for row in reversed(_SIZES) if share >= _ENOUGH * row[-1] or row is _SIZES[0])
    layers, hidden, heads, vocabulary, batch, length = size
    steps = max(round(_TOKENS * share / cost / (batch * length)), 10)
    return Scale(layers, hidden, heads, vocabulary, steps, batch, length)
