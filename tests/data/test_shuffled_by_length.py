"""The order of examples: each epoch all of them, batches of like lengths, and a function of seed and number alone."""

import numpy as np
import pytest

from stemma.data.shuffled_by_length import ShuffledByLength

LENGTHS = np.random.default_rng(0).integers(3, 200, 10_000)


def order_of(examples: int, batch: int, seed: int = 1) -> ShuffledByLength:
    return ShuffledByLength(range(examples), LENGTHS[:examples], batch, seed)


@pytest.mark.parametrize("batches", [1, 3, 50, 51, 75, 130])
def test_each_epoch_is_a_permutation(batches: int) -> None:
    order = order_of(batches * 4, 4)
    for epoch in range(3):
        numbers = [order.number(index) for index in range(epoch * batches * 4, (epoch + 1) * batches * 4)]
        assert sorted(numbers) == list(range(batches * 4))


@pytest.mark.parametrize(("examples", "batch"), [(3, 8), (8, 8), (10, 4), (301, 4), (1, 5)])
def test_where_batches_cross_epochs_all_come_as_often(examples: int, batch: int) -> None:
    order, epochs = order_of(examples, batch), 7 * batch
    counts = np.bincount([order.number(index) for index in range(epochs * examples)], minlength=examples)
    assert counts.tolist() == [epochs] * examples
    # Nothing comes a pool before its time: within two epochs' batches everything was there once.
    assert len({order.number(index) for index in range(examples + batch)}) == examples


def test_little_is_padded() -> None:
    order = order_of(3200, 32)
    batches = LENGTHS[[order.number(index) for index in range(3200)]].reshape(-1, 32)
    assert batches.sum() / (batches.max(1) * 32).sum() > 0.95
    assert (np.diff(batches.max(1)) > 0).mean() == pytest.approx(0.5, abs=0.15)  # not from short to long


def test_number_is_a_function_of_seed_and_index_alone() -> None:
    one, other = order_of(301, 4), order_of(301, 4)
    forwards = [one.number(index) for index in range(1000)]
    assert forwards == [other.number(index) for index in reversed(range(1000))][::-1]
    assert forwards != [order_of(301, 4, seed=2).number(index) for index in range(1000)]
    assert forwards[:300] != forwards[301:601]
    assert one.sequence(7) == one.number(7)
