"""Which documents are drawn for an evaluation that is limited to some tokens."""

import numpy as np
import pytest

from stemma.training.held_out import SampledDocuments


class Split:
    """Documents of the given numbers of tokens, three bytes each token but the separator."""

    def __init__(self, sizes):
        self.document_starts = np.cumsum([0, *sizes[:-1]])
        self.document_bytes = np.array([3 * (size - 1) for size in sizes])
        self.tokens = np.arange(sum(sizes))
        self.documents = len(sizes)

    def bounds(self, index):
        ends = [*self.document_starts[1:], len(self.tokens)]
        return int(self.document_starts[index]), int(ends[index])


def chosen(sample):
    return [sample.bounds(index) for index in range(sample.documents)]


def test_documents_are_spread_evenly():
    split = Split([10] * 100)
    sample = SampledDocuments(split, 200)
    starts = [start for start, _ in chosen(sample)]
    assert starts == list(range(40, 1000, 50))
    assert sample.bytes == 20 * 27
    assert sample.tokens is split.tokens


def test_enough_tokens_are_all_documents():
    split = Split([3, 8, 5])
    sample = SampledDocuments(split, 16)
    assert chosen(sample) == [(0, 3), (3, 11), (11, 16)] and sample.bytes == split.document_bytes.sum()


def test_one_long_document_is_cut_and_its_bytes_with_it():
    sample = SampledDocuments(Split([1001]), 500)
    assert chosen(sample) == [(0, 500)]
    assert sample.bytes == pytest.approx(3000 * 500 / 1001, abs=1)


def test_no_document_is_no_sample():
    assert SampledDocuments(Split([]), 10).documents == 0
