import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemma.data import packing
from stemma.data.packing import IGNORED, PackedSequences, scoring_windows
from stemma.data.token_arrays import FileArray
from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.errors import InputError


def split_of(folder: Path, document_lengths: list[int]) -> TokenizedSplit:
    """Documents of so many tokens beside the separator; every token is its own place in the stream."""
    starts = np.cumsum([0] + [length + 1 for length in document_lengths])
    np.arange(starts[-1], dtype="<u4").tofile(folder / "tokens")
    starts[:-1].astype("<i8").tofile(folder / "documents")
    documents = FileArray([folder / "documents"], "<i8")
    return TokenizedSplit(FileArray([folder / "tokens"], "<u4"), documents, documents, 0, 0, int(starts[-1]), "test")


@pytest.mark.parametrize("total,length", [(1000, 7), (1000, 10), (11, 10), (20, 19), (50, 1)])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_covers_the_stream_once(tmp_path, total, length, epoch):
    packed = PackedSequences(split_of(tmp_path, [total - 1]), length, seed=3)
    assert len(packed) == total // length
    sequences = [packed.sequence(epoch * len(packed) + position) for position in range(len(packed))]
    for sequence in sequences:
        assert sequence.shape == (length + 1,) and sequence.dtype == np.int64
        np.testing.assert_array_equal(sequence, (sequence[0] + np.arange(length + 1)) % total)  # a ring
    inputs = np.concatenate([sequence[:-1] for sequence in sequences])
    assert len(np.unique(inputs)) == len(inputs) > total - length
    targets = np.concatenate([sequence[1:] for sequence in sequences])
    assert len(np.unique(targets)) == len(targets)


def test_a_sequence_depends_on_seed_and_index_only(tmp_path):
    split = split_of(tmp_path, [999])
    indices = np.random.default_rng(0).permutation(600)
    packed = PackedSequences(split, 7, seed=5)
    in_some_order = {int(index): packed.sequence(int(index)) for index in indices}
    for index in 0, 141, 142, 143, 599:
        np.testing.assert_array_equal(PackedSequences(split, 7, seed=5).sequence(index), in_some_order[index])


def test_epochs_and_seeds_differ_in_order_and_cuts(tmp_path):
    split = split_of(tmp_path, [9_999])
    firsts, orders = set(), set()
    for seed in range(10):
        packed = PackedSequences(split, 100, seed)
        for epoch in range(20):
            inputs = [int(packed.sequence(epoch * len(packed) + position)[0]) for position in range(len(packed))]
            firsts.add(inputs[0] % 100)
            orders.add(tuple(inputs))
            assert inputs != sorted(inputs)
    assert len(orders) == 200
    assert len(firsts) > 75  # of 100 cut positions 200 draws miss 13.4 on average


def test_fingerprint_changes_with_everything_that_changes_the_sequences(tmp_path):
    split = split_of(tmp_path, [99])
    prints = [PackedSequences(split, length, seed).fingerprint for length in (5, 6) for seed in (1, 2)]
    assert len(set(prints)) == 4
    assert PackedSequences(split, 5, 1).fingerprint == prints[0]


def test_corpus_smaller_than_one_sequence_names_both_numbers(tmp_path):
    message = "smaller than one sequence: 1,500 tokens to train on; expected at least 2,049"
    with pytest.raises(InputError, match=message):
        PackedSequences(split_of(tmp_path, [1499]), 2048, seed=0)
    assert len(PackedSequences(split_of(tmp_path, [1499]), 1499, seed=0)) == 1


@given(
    documents=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    length=st.integers(1, 16),
    overlap=st.integers(0, 16),
    batch_size=st.integers(1, 4),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
def test_every_token_is_scored_once_in_its_context(tmp_path, documents, length, overlap, batch_size):
    overlap = min(overlap, length)
    split = split_of(tmp_path, documents)
    starts = np.asarray(split.document_starts)
    scored = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "OPEN_ROWS", 2)
        batches = list(scoring_windows(split, length, overlap, batch_size))
    for batch in batches:
        tokens, targets, ids = batch["tokens"], batch["targets"], batch["document_ids"]
        assert tokens.shape == targets.shape == ids.shape == (len(tokens), length)
        assert tokens.dtype == targets.dtype == ids.dtype == np.int64
        assert len(tokens) == batch_size or (batch is batches[-1] and len(tokens) < batch_size)
        for row, column in zip(*np.nonzero(targets != IGNORED), strict=True):
            target = int(targets[row, column])
            scored.append(target)
            # Its context: the tokens before it in the same window, which run on without a gap from its own document.
            same = np.flatnonzero(ids[row, : column + 1] == ids[row, column])
            context = tokens[row, same]
            np.testing.assert_array_equal(context, np.arange(target - len(context), target))
            document = starts[starts <= target][-1]
            assert document <= context[0] and target != document
            assert len(context) >= min(max(overlap, 1), target - document)
        for row in range(len(tokens)):
            padding = np.flatnonzero(ids[row] == ids[row].max())
            if (targets[row, padding] == IGNORED).all():
                assert not np.isin(ids[row, padding], ids[row, targets[row] != IGNORED]).any()
    expected = set(range(len(split.tokens))) - set(starts.tolist())
    assert sorted(scored) == sorted(expected)


def test_windows_slide_by_length_less_overlap(tmp_path):
    """The closed form: a first window scores `length` tokens, each further one `length - overlap + 1`."""
    batches = list(scoring_windows(split_of(tmp_path, [100]), 20, 5, 3))
    counts = [int((row != IGNORED).sum()) for batch in batches for row in batch["targets"]]
    assert counts == [20, 16, 16, 16, 16, 16]


def test_short_documents_share_rows(tmp_path):
    batches = list(scoring_windows(split_of(tmp_path, [4] * 100), 20, 5, 5))
    assert [batch["tokens"].shape for batch in batches] == [(5, 20)] * 4
    assert all((batch["targets"] != IGNORED).all() for batch in batches)


def test_padding_at_the_end_of_a_row(tmp_path):
    (batch,) = scoring_windows(split_of(tmp_path, [2, 2]), 6, 1, 2)
    assert batch["tokens"].tolist() == [[0, 1, 3, 4, 0, 0]]
    assert batch["targets"].tolist() == [[1, 2, 4, 5, IGNORED, IGNORED]]
    assert batch["document_ids"].tolist() == [[0, 0, 1, 1, 2, 2]]


@pytest.mark.parametrize("length,overlap", [(8, 9), (8, -1), (0, 0)])
def test_overlap_that_leaves_nothing_to_score(tmp_path, length, overlap):
    with pytest.raises(InputError, match="expected from 0 to the window's length"):
        list(itertools.islice(scoring_windows(split_of(tmp_path, [10]), length, overlap, 1), 1))
