"""Where in a model a task is solved: measures of mixing weights and of scores by layer.

Tenney, Das and Pavlick 2019, "BERT Rediscovers the Classical NLP Pipeline", section 3.
"""

import numpy as np

_LEAST_GAIN = 0.01  # below which the differences are mostly noise


def centre_of_gravity(shares: np.ndarray) -> float:
    """Return the mean layer, counted from 0, under the shares of a mix, float [layers]."""
    return float(np.arange(len(shares)) @ shares)


def divergence_from_uniform(shares: np.ndarray) -> float:
    """Return how far shares, float [layers], are from all alike: the Kullback-Leibler divergence in bits."""
    positive = shares[shares > 0]
    return float(positive @ np.log2(positive * len(shares)))


def expected_layer(scores: np.ndarray) -> np.ndarray:
    """Return the mean layer at which cumulative scores are gained: sum_k k d_k / sum_k d_k, d_k = score_k - score_k-1.

    Losses count as negative gains, as published: the value may lie outside of the layers (see `is_ordered`).

    Args:
        scores: float [..., layers], of the mix of the layers up to each.
    """
    gains = np.diff(scores, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected: np.ndarray = gains @ np.arange(1.0, scores.shape[-1]) / gains.sum(-1)
    return expected


def is_ordered(scores: np.ndarray) -> bool:
    """Return whether the layers gain enough over the embeddings for their expected layer to mean anything.

    Args:
        scores: float [layers], of which 1 is perfect.
    """
    return float(scores[-1] - scores[0]) > _LEAST_GAIN
