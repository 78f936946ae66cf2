"""Attention in tiles, with heads that share keys, against a dense mask over repeated keys."""

import pytest
import torch
import torch.nn.functional as F

from stemma.layers import masks, tiled_attention
from stemma.layers.attention import attention
from stemma.layers.masks import Mask
from stemma.layers.tiled_attention import Stretch, tiles_of


@pytest.fixture(autouse=True)
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "LEAST_PAIRS", 0)
    monkeypatch.setattr(tiled_attention, "LEAST_QUERIES", 4)
    monkeypatch.setattr(tiled_attention, "MOST_QUERIES", 4)


def dense(query, key, value, mask: Mask, window: int | None) -> torch.Tensor:
    group = query.shape[1] // key.shape[1]
    queries, keys = query.shape[2], key.shape[2]
    positions = torch.arange(keys - queries, keys) if mask.query_positions is None else mask.query_positions
    distance = positions[:, None] - torch.arange(keys)
    allowed = distance >= 0
    if window is not None:
        allowed = allowed & (distance < window)
    if mask.document_ids is not None:
        allowed = allowed & (mask.document_ids[:, positions, None] == mask.document_ids[:, None])[:, None]
    key, value = (tensor.repeat_interleave(group, 1) for tensor in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


DOCUMENTS = torch.tensor([[0] * 9 + [1] * 1 + [2] * 20, [0] * 26 + [1] * 4])
# Two texts of 12 and 18 keys, the last 5 and 11 of which are queries: pieces of prompts behind what is cached.
PIECES = Mask(
    causal=True,
    document_ids=torch.tensor([[0] * 12 + [1] * 18]),
    query_positions=torch.cat((torch.arange(7, 12), torch.arange(19, 30))),
)


@pytest.mark.parametrize("window", [1, 3, 4, 9, 29, None])
@pytest.mark.parametrize(
    ("batch", "queries", "mask"),
    [
        (2, 30, Mask(causal=True)),
        (2, 30, Mask(causal=True, document_ids=DOCUMENTS)),
        (2, 13, Mask(causal=True)),
        (2, 13, Mask(causal=True, query_positions=torch.arange(17, 30))),
        (1, 16, PIECES),
    ],
    ids=["rows", "documents", "last queries", "last queries, named", "pieces"],
)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
def test_output_and_gradients(heads: tuple[int, int], batch: int, queries: int, mask: Mask, window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads[0], queries, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    key, value = (
        torch.randn(batch, heads[1], 30, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    mask = Mask(mask.causal, document_ids=mask.document_ids, query_positions=mask.query_positions)
    output, expected = attention(query, key, value, mask, window=window), dense(query, key, value, mask, window)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    weight = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad((output * weight).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    for gradient, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)
    if window is not None or queries < 30:
        assert mask.lower(query, key, window, tiled=True).tiles is not None


def test_the_pairs_that_are_computed_grow_with_the_window_and_not_with_the_square() -> None:
    for length in (100, 1000):
        tiles = tiles_of([Stretch(slice(0, 1), slice(0, length), slice(0, length))], 20)
        assert [(tile.queries.start, tile.queries.stop) for tile in tiles][:3] == [(0, 20), (20, 24), (24, 28)]
        assert tiles[-1].queries.stop == length
        pairs = sum((q.stop - q.start) * (k.stop - k.start) for _, q, k, *_ in tiles)
        assert pairs <= length * (20 + 4 - 1)


def test_one_query_reads_each_key_once() -> None:
    """A single token: the heads that share keys are the queries of one head."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 1, 8, generator=generator)
    key, value = (torch.randn(2, 2, 9, 8, generator=generator) for _ in range(2))
    padding = torch.arange(9) >= torch.tensor([[0], [4]])
    expected = F.scaled_dot_product_attention(
        query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), attn_mask=padding[:, None, None]
    )
    mask = Mask(key_padding=padding, query_positions=torch.tensor(-1))
    torch.testing.assert_close(attention(query, key, value, mask), expected)
    plain = F.scaled_dot_product_attention(query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1))
    torch.testing.assert_close(attention(query, key, value), plain)
