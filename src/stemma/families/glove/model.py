"""GloVe: word vectors whose products are the logarithms of how often the words come together.

Pennington et al. 2014, "GloVe: Global Vectors for Word Representation"; details as in the authors' glove.c.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

FIRST_SQUARE = 1.0  # what sums of squared gradients begin with


@dataclass(frozen=True)
class GloVeConfig:
    """What is counted and how it is fitted.

    Args:
        window: largest distance of two words that come together. symmetric: on both sides, else the left only.
        distance_weighting: a pair at distance d counts 1 / d, else 1.
        x_max, exponent: a pair that was counted x times has weight min(1, (x / x_max) ** exponent).
        gradient_limit: each component of a gradient is held within +- this.
        bias_learning_rate: "reference": biases are updated without learning rate and limit, as glove.c does since 2020;
            "paper": like the vectors.
    """

    dimensions: int = 100
    window: int = 15
    symmetric: bool = True
    distance_weighting: bool = True
    x_max: float = 100.0
    exponent: float = 0.75
    gradient_limit: float = 100.0
    bias_learning_rate: Literal["reference", "paper"] = "reference"

    def __post_init__(self) -> None:
        for name in ("dimensions", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.x_max <= 0:
            raise ValueError(f"x_max is {self.x_max}, expected more than 0")


@dataclass(frozen=True)
class GloVe:
    """Weights, and for AdaGrad the sums of squared gradients; all float32.

    Args:
        vectors, contexts: of the two sides of a pair [words, dimensions]; biases, context_biases: [words].
        squares: sums for the four, in this order.
    """

    vectors: np.ndarray
    contexts: np.ndarray
    biases: np.ndarray
    context_biases: np.ndarray
    squares: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def initial(cls, words: int, config: GloVeConfig, seed: int) -> "GloVe":
        """Return weights uniform in +-0.5 / dimensions, biases too."""
        generator = np.random.default_rng(seed)
        shapes = [(words, config.dimensions), (words, config.dimensions), (words,), (words,)]

        def draw(shape: tuple[int, ...]) -> np.ndarray:
            return ((generator.random(shape, np.float32) - np.float32(0.5)) / config.dimensions).astype(np.float32)

        vectors, contexts, biases, context_biases = map(draw, shapes)
        first, second, third, fourth = (np.full(shape, FIRST_SQUARE, np.float32) for shape in shapes)
        return cls(vectors, contexts, biases, context_biases, (first, second, third, fourth))

    @property
    def sums(self) -> np.ndarray:
        """The vectors to use: both sides of each word added (section 4.2), float32 [words, dimensions]."""
        return self.vectors + self.contexts
