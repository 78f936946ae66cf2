"""Packing rows of different lengths, against torch's PackedSequence."""

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from stemma.layers.packed_rows import PackedRows

LENGTHS = torch.tensor([2, 5, 1, 5, 3])


def test_packs_as_torch_does_and_undoes_it() -> None:
    rows = PackedRows.of(LENGTHS, 6)
    padded = torch.randn(2, 5, 6, 3)
    packed = rows.pack(padded)
    for ours, whole in zip(packed, padded, strict=True):
        expected = pack_padded_sequence(whole, LENGTHS, batch_first=True, enforce_sorted=False)
        assert torch.equal(ours, expected.data)
        assert rows.sizes == tuple(expected.batch_sizes.tolist())
    real = torch.arange(6) < LENGTHS.unsqueeze(1)
    assert torch.equal(rows.pad(packed, padded), padded * real.unsqueeze(-1))


def test_steps_know_the_one_before_and_rows_their_last() -> None:
    rows = PackedRows.of(LENGTHS, 5)
    steps = torch.arange(25).view(1, 5, 5, 1)  # row * 5 + step
    packed = rows.pack(steps)[0, :, 0]
    assert packed[rows.last].tolist() == [0 * 5 + 1, 1 * 5 + 4, 2 * 5 + 0, 3 * 5 + 4, 4 * 5 + 2]
    before = torch.cat([-1 - rows.order, packed])  # what stands in front: the state of each row
    for now, previous in zip(packed.tolist(), before[rows.previous].tolist(), strict=True):
        assert previous == (now - 1 if now % 5 else -1 - now // 5)
