"""Attention under every kind of mask, against a brute-force computation in float64 over all pairs."""

import itertools
import math

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from stemma.layers import masks
from stemma.layers.attention import MultiHeadAttention, attention
from stemma.layers.masks import Mask
from stemma.layers.positions import positions_of
from stemma.layers.segments import document_segments

BATCH, HEADS, LENGTH, HEAD_DIM = 2, 3, 24, 8
DOCUMENTS = torch.tensor([[0] * 7 + [1] * 1 + [2] * 16, [0] * 20 + [1] * 4])
PADDING = torch.tensor([[False] * 5 + [True] * 19, [True] * 24])
PREFIX = torch.tensor([4, 11])

MASKS = {
    "everything": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=5),
    "two-sided window": Mask(window=3),
    "prefix": Mask(causal=True, prefix_lengths=PREFIX),
    "right to left": Mask(causal=True, reverse=torch.tensor([True, False])),
    "right to left, prefix, window, padding": Mask(
        causal=True, reverse=torch.tensor([False, True]), prefix_lengths=PREFIX, window=6, key_padding=PADDING
    ),
    "documents": Mask(causal=True, document_ids=DOCUMENTS),
    "documents both ways": Mask(document_ids=DOCUMENTS),
    "documents and window": Mask(causal=True, document_ids=DOCUMENTS, window=4),
    "left padding": Mask(causal=True, key_padding=PADDING),
    "all at once": Mask(causal=True, prefix_lengths=PREFIX, window=9, document_ids=DOCUMENTS, key_padding=PADDING),
}


def may_see(mask: Mask, row: int, query: int, key: int) -> bool:
    """The definition of `Mask`, one pair of tokens at a time."""
    reverse = mask.reverse is not None and mask.reverse[row]
    allowed = not mask.causal or (key >= query if reverse else key <= query)
    if mask.prefix_lengths is not None:
        allowed = allowed or key < mask.prefix_lengths[row]
    if mask.window is not None:
        ahead = mask.causal and mask.reverse is None  # nothing that is seen lies beyond the window on that side
        allowed = allowed and query - key < mask.window and (ahead or key - query < mask.window)
    if mask.document_ids is not None:
        allowed = allowed and mask.document_ids[row, query] == mask.document_ids[row, key]
    if mask.key_padding is not None:
        allowed = (allowed and mask.key_padding[row, key]) or query == key
    return bool(allowed)


def brute_force(query, key, value, mask):
    output = torch.zeros(query.shape, dtype=torch.float64)
    for row, head, i in itertools.product(range(BATCH), range(HEADS), range(query.shape[2])):
        seen = [j for j in range(key.shape[2]) if may_see(mask, row, i, j)]
        scores = key[row, head, seen].double() @ query[row, head, i].double() / math.sqrt(HEAD_DIM)
        output[row, head, i] = scores.softmax(0) @ value[row, head, seen].double()
    return output


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM, generator=generator) for _ in range(4)]


@pytest.fixture(autouse=True)
def small_documents_count(monkeypatch):
    monkeypatch.setattr(masks, "LEAST_PAIRS", 16)


@pytest.mark.parametrize("name", MASKS)
def test_output_and_gradients_equal_brute_force(name):
    query, key, value, weight = tensors()
    mask = MASKS[name]
    ours = [t.clone().requires_grad_() for t in (query, key, value)]
    theirs = [t.clone().requires_grad_() for t in (query, key, value)]
    output, expected = attention(*ours, mask), brute_force(*theirs, mask)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    (output * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)


def test_packed_rows_take_the_road_without_a_dense_mask():
    query, key, _, _ = tensors()
    lowered = MASKS["documents"].lower(query, key)
    assert lowered.dense is None and lowered.segments == [(0, 0, 7), (0, 7, 8), (0, 8, 24), (1, 0, 20), (1, 20, 24)]


def test_many_tiny_documents_fall_back_to_a_dense_mask_with_the_same_result(monkeypatch):
    monkeypatch.setattr(masks, "LEAST_PAIRS", 8192)
    query, key, value, _ = tensors()
    mask = Mask(causal=True, document_ids=torch.arange(LENGTH).div(2, rounding_mode="floor").expand(BATCH, -1))
    assert mask.lower(query, key).dense is not None
    output = attention(query, key, value, mask)
    torch.testing.assert_close(output.double(), brute_force(query, key, value, mask), atol=1e-5, rtol=1e-5)


def test_segments_of_rows_that_share_an_id_are_not_joined():
    assert document_segments(torch.zeros(3, 4, dtype=torch.long)) == [(0, 0, 4), (1, 0, 4), (2, 0, 4)]


def test_a_layer_window_narrows_the_mask_and_the_lowered_mask_is_shared():
    query, key, value, _ = tensors()
    mask = Mask(causal=True)
    torch.testing.assert_close(
        attention(query, key, value, mask, window=5), attention(query, key, value, Mask(causal=True, window=5))
    )
    assert mask.lower(query, key, 5) is mask.lower(query, key, 5)
    assert mask.lower(query, key).is_causal


def test_the_last_queries_of_a_longer_text():
    query, key, value, _ = tensors()
    for name in ("causal", "window"):
        whole = brute_force(query, key, value, MASKS[name])
        for some in (1, 5):
            part = attention(query[:, :, -some:], key, value, MASKS[name])
            torch.testing.assert_close(part.double(), whole[:, :, -some:], atol=1e-5, rtol=1e-5)


def test_queries_at_given_positions():
    query, key, value, _ = tensors()
    positions = torch.tensor([[3, 17], [0, 23]])
    whole = brute_force(query, key, value, MASKS["causal"])
    chosen = torch.stack([query[row, :, positions[row]] for row in range(BATCH)])
    expected = torch.stack([whole[row, :, positions[row]] for row in range(BATCH)])
    output = attention(chosen, key, value, Mask(causal=True, query_positions=positions))
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in MASKS if name not in ("everything", "causal")])
def test_the_block_mask_of_gpus_describes_the_same(name):
    query, key, value, _ = tensors()
    mask = MASKS[name]
    block = mask._block(BATCH, LENGTH, mask.window, query.device)
    output = flex_attention(query, key, value, block_mask=block)
    torch.testing.assert_close(output.double(), brute_force(query, key, value, mask), atol=1e-5, rtol=1e-5)


def test_a_token_of_one_document_changes_nothing_in_another():
    torch.manual_seed(0)
    layer = MultiHeadAttention(24, 3, layer=0)
    x = torch.randn(BATCH, LENGTH, 24)
    before = layer(x, MASKS["documents"])
    x[0, 3] += 1.0
    changed = (layer(x, MASKS["documents"]) != before).any(-1)
    assert changed[0].nonzero().squeeze(1).tolist() == [3, 4, 5, 6] and not changed[1].any()


def test_positions_restart_with_documents_and_skip_left_padding():
    documents = positions_of(MASKS["documents"], LENGTH, torch.device("cpu"))
    assert documents[0].tolist() == [*range(7), 0, *range(16)] and documents[1].tolist() == [*range(20), *range(4)]
    padded = positions_of(MASKS["left padding"], LENGTH, torch.device("cpu"))
    assert padded[0].tolist() == [0] * 5 + [*range(19)]
    assert positions_of(None, 3, torch.device("cpu")).tolist() == [0, 1, 2]
