"""Batches by tokens: every pair once an epoch, next to others of its length; and the loss of such a batch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stemma.errors import InputError
from stemma.families.transformer.batches import TokenBatches
from stemma.families.transformer.model import Transformer, TransformerConfig
from stemma.families.transformer.objective import Translation

END = 7


class Rows(list):
    """Texts as ids; those of a text are its number."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self])


def split_of(lengths: list[tuple[int, int]]) -> SimpleNamespace:
    sides = (Rows(np.full(pair[side], 10 + number) for number, pair in enumerate(lengths)) for side in (0, 1))
    return SimpleNamespace(**dict(zip(("sources", "targets"), sides, strict=True)), fingerprint="")


def numbers(batch: list[tuple[np.ndarray, np.ndarray]]) -> list[int]:
    for source, target in batch:
        assert source[-1] == target[-1] == END and source[0] == target[0]
    return [int(source[0]) - 10 for source, _ in batch]


@pytest.fixture(scope="module")
def many() -> SimpleNamespace:
    rng = np.random.default_rng(0)
    return split_of([(int(a), int(b)) for a, b in rng.integers(1, 30, (700, 2))])


def test_every_pair_comes_once_an_epoch_in_batches_that_fit(many: SimpleNamespace) -> None:
    batches = TokenBatches(many, 120, 1, end=END, longest=40)
    orders = []
    for epoch in range(2):
        seen = []
        for place in range(len(batches)):
            batch = batches.sequence(epoch * len(batches) + place)
            for side in (0, 1):
                assert len(batch) * max(len(pair[side]) for pair in batch) <= 120
            seen.append(numbers(batch))
        assert sorted(number for batch in seen for number in batch) == list(range(700))
        orders.append(seen)
    assert orders[0] != orders[1]
    assert sorted(map(len, orders[0])) == sorted(map(len, orders[1]))
    # Hardly a place is lost: one more pair of the same length would not have fitted.
    longest = [max(max(len(a), len(b)) for a, b in batches.sequence(place)) for place in range(len(batches))]
    assert sum(len(batch) * size for batch, size in zip(orders[0], longest, strict=True)) > 0.85 * 120 * len(batches)
    again = TokenBatches(many, 120, 1, end=END, longest=40)
    assert numbers(again.sequence(len(again) + 3)) == orders[1][3]
    other = TokenBatches(many, 120, 2, end=END, longest=40)
    assert [numbers(other.sequence(place)) for place in range(len(other))] != orders[0]


def test_pairs_that_are_long_or_empty_are_not_trained_on_but_scored() -> None:
    split = split_of([(2, 3), (9, 2), (2, 9), (0, 3), (3, 0), (4, 4), (50, 1)])
    batches = TokenBatches(split, 20, 0, end=END, longest=9)
    assert sorted(n for place in range(len(batches)) for n in numbers(batches.sequence(place))) == [0, 5]
    scored = list(TokenBatches(split, 20, 0, end=END, longest=None).by_length())
    assert sum(map(len, scored)) == 7
    assert [len(batch[-1][0]) for batch in scored][-1] == 51 and len(scored[-1]) == 1  # alone, and longer than 20
    with pytest.raises(InputError, match="none of 7 pairs has 1 to 2 tokens on both sides"):
        TokenBatches(split, 20, 0, end=END, longest=2)


def test_the_loss_is_that_of_smoothed_targets_without_padding() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocabulary=40, hidden=16, heads=2, layers=1, feed_forward=32, dropout=0.0))
    objective = Translation(separator=END, label_smoothing=0.1)
    pairs = [(np.array([9, 8, END]), np.array([3, 4, 5, END])), (np.array([2, END]), np.array([6, END]))]
    batch = objective.collate([{"pairs": pairs[:1]}, {"pairs": pairs[1:]}])
    assert batch["source"].tolist() == [[9, 8, 7], [2, 7, 0]] and batch["source_padding"].tolist()[1][2] is False
    assert batch["target"].tolist()[1] == [6, 7, -100, -100] and objective.counts(batch) == {"targets": 6}

    logits = model(batch["source"], batch["target"], source_padding=batch["source_padding"]).flatten(0, 1)
    targets = batch["target"].flatten()
    loss, sums = objective.loss(model, batch, {"targets": 12})
    expected = F.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(loss, expected / 12, rtol=1e-6, atol=1e-6)
    alone = [objective.loss(model, objective.collate([{"pairs": [pair]}]), {"targets": 12})[0] for pair in pairs]
    torch.testing.assert_close(sum(alone), loss, rtol=1e-5, atol=1e-6)  # padding changes nothing

    model.eval()
    loss, sums = objective.loss(model, batch)
    expected = F.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(sums["nll"], expected.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(loss, expected / 6, rtol=1e-6, atol=1e-6)


def test_operations_are_about_six_a_token_and_parameter() -> None:
    model = Transformer(TransformerConfig(vocabulary=4096, vocabulary_multiple=1))
    blocks = sum(parameter.numel() for parameter in model.parameters()) - model.token_embedding.weight.numel()
    # The source meets the encoder and the keys and values of its tokens, the target the rest and the output.
    counted = Translation(separator=END).training_flops(model, 3125)
    assert counted == pytest.approx(6 * 3125 * (blocks + 4096 * 512), rel=0.03)
