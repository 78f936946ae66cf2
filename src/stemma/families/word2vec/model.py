"""word2vec: each word has an input vector, and is told from noise, or found in a tree, by output vectors.

Mikolov et al. 2013, "Efficient Estimation of Word Representations in Vector Space" and "Distributed Representations of
Words and Phrases and their Compositionality"; the algorithm is that of word2vec.c unless said otherwise.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Word2VecConfig:
    """What is learned, and how.

    Args:
        architecture: a word's vector predicts each neighbour ("skip-gram"), or the mean of all neighbours predicts the
            word ("cbow"). In skip-gram, as in word2vec.c, it is the neighbour's input vector that predicts the word.
        output: "negative" sampling, or the "hierarchical" softmax over a Huffman tree.
        window: the largest distance of a neighbour; each word draws its own from 1 to this.
        negatives: noise words for each prediction. exponent: they are drawn by count ** exponent.
        subsample: a word of relative frequency f is kept with probability (sqrt(f / subsample) + 1) * subsample / f
            (word2vec.c; the paper's formula differs slightly); 0 keeps all.
        mode: of skip-gram. "exact" updates after each pair of words, with noise of its own, as word2vec.c does. "fast"
            takes all neighbours of a word at once, with the same noise (Ji et al. 2016, "Parallelizing Word2Vec in
            Shared and Distributed Memory"): the same expected gradient, several times the speed. CBOW has only one
            prediction a word, so both are the same there.
        cbow_gradient: the gradient of a mean, shared out among its words ("exact"), or given to each in full
            ("reference": word2vec.c and gensim). Each has a learning rate of its own (see training.py).
    """

    dimensions: int = 100
    architecture: Literal["skip-gram", "cbow"] = "skip-gram"
    output: Literal["negative", "hierarchical"] = "negative"
    window: int = 5
    negatives: int = 5
    exponent: float = 0.75
    subsample: float = 1e-3
    mode: Literal["fast", "exact"] = "fast"
    cbow_gradient: Literal["exact", "reference"] = "exact"

    def __post_init__(self) -> None:
        for name in ("dimensions", "window", "negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.subsample < 0:
            raise ValueError(f"subsample is {self.subsample}, expected 0 (keep all) or more")


def initial_vectors(words: int, config: Word2VecConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 input vectors [words, dimensions], uniform in +-0.5 / dimensions, and output vectors, all zero.

    The output vectors belong to the words, or, in the tree, to its words - 1 inner nodes (one row stays unused).
    """
    generator = np.random.default_rng(seed)
    inputs = (generator.random((words, config.dimensions), np.float32) - np.float32(0.5)) / config.dimensions
    return inputs.astype(np.float32), np.zeros((words, config.dimensions), np.float32)


def keep_probabilities(counts: np.ndarray, subsample: float) -> np.ndarray:
    """Return for each word the probability that an occurrence is kept, float32 [words]; `counts` int64 [words]."""
    if subsample == 0:
        return np.ones(len(counts), np.float32)
    relative = subsample / (counts / counts.sum())
    return np.minimum(np.sqrt(relative) + relative, 1).astype(np.float32)
