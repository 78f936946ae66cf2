"""Attention with a learned bias of the scores, against a brute-force computation in float64, by every road."""

import pytest
import torch

from stemma.layers import biased_attention, masks
from stemma.layers.attention import MultiHeadAttention, attention
from stemma.layers.masks import Mask

BATCH, HEADS, LENGTH, HEAD_DIM = 2, 3, 24, 8
DOCUMENTS = torch.tensor([[0] * 7 + [1] * 1 + [2] * 16, [0] * 20 + [1] * 4])
PADDING = torch.tensor([[True] * 19 + [False] * 5, [True] * 24])

MASKS = {
    "none": None,
    "everything": Mask(),
    "causal": Mask(causal=True),
    "documents": Mask(document_ids=DOCUMENTS),
    "causal documents": Mask(causal=True, document_ids=DOCUMENTS),
    "padding": Mask(key_padding=PADDING),
    "prefix": Mask(causal=True, prefix_lengths=torch.tensor([4, 11])),
    "window": Mask(window=5),
}


def tensors(queries: int = LENGTH, seed: int = 0) -> list[torch.Tensor]:
    """Query, key, value, bias and a weight of the output."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (queries, LENGTH, LENGTH)
    inputs = [torch.randn(BATCH, length, HEADS, HEAD_DIM, generator=generator).transpose(1, 2) for length in lengths]
    bias = torch.randn(1, HEADS, queries, LENGTH, generator=generator)
    return [*inputs, bias, torch.randn(BATCH, HEADS, queries, HEAD_DIM, generator=generator)]


def brute_force(query, key, value, bias, mask, scale):
    query, key, value, bias = (tensor.double() for tensor in (query, key, value, bias))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale + bias
    if mask is not None:
        allowed = mask._dense(BATCH, query.shape[2], LENGTH, mask.window, query.device)
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1) @ value


def compare(mask, scale, queries=LENGTH):
    *inputs, weight = tensors(queries)
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    theirs = [tensor.clone().requires_grad_() for tensor in inputs]
    output = attention(*ours[:3], mask, bias=ours[3], scale=scale)
    expected = brute_force(*theirs, mask, HEAD_DIM**-0.5 if scale is None else scale)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    (output * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)
    return output


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("least", [16, 10**9], ids=["by parts", "at once"])
@pytest.mark.parametrize("name", MASKS)
def test_output_and_gradients_equal_brute_force(name, least, scale, monkeypatch):
    monkeypatch.setattr(biased_attention, "LEAST_PAIRS", least)
    monkeypatch.setattr(biased_attention, "CHUNK_ELEMENTS", 2 * LENGTH * LENGTH)  # not all heads at once
    monkeypatch.setattr(masks, "LEAST_PAIRS", least)
    mask = MASKS[name]
    if mask is not None:
        mask._lowered.clear()
    output = compare(mask, scale)
    padded = name in ("padding", "prefix", "window") or (least > 16 and "documents" in name)
    by_parts = not padded and (least == 16)
    assert ("BiasedAttention" in type(output.grad_fn).__name__) == by_parts


def test_more_keys_than_queries(monkeypatch):
    monkeypatch.setattr(biased_attention, "LEAST_PAIRS", 16)
    output = compare(None, 1.0, queries=5)
    assert "BiasedAttention" in type(output.grad_fn).__name__
    compare(Mask(causal=True), 1.0, queries=5)


def test_without_gradients_and_with_dropout(monkeypatch):
    monkeypatch.setattr(biased_attention, "LEAST_PAIRS", 16)
    query, key, value, bias, _ = tensors()
    expected = brute_force(query, key, value, bias, None, 1.0)
    output = attention(query, key, value, bias=bias, scale=1.0)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    # Dropout leaves the expectation as it is.
    bias.requires_grad_()
    torch.manual_seed(0)
    mean = sum(attention(query, key, value, bias=bias, scale=1.0, dropout=0.3).detach() for _ in range(2000)) / 2000
    torch.testing.assert_close(mean.double(), expected, atol=0.12, rtol=0)
    assert not torch.equal(attention(query, key, value, bias=bias, dropout=0.3).detach(), output)


def test_heads_of_a_width_of_their_own_and_unscaled_scores():
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, 3, layer=0, head_dim=8, scale=1.0, bias=False)
    x, bias = torch.randn(2, 5, 12), torch.randn(1, 3, 5, 5)
    query, key, value = (map(x).unflatten(-1, (3, 8)) for map in (layer.query, layer.key, layer.value))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) + bias
    expected = layer.output(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2))
    torch.testing.assert_close(layer(x, bias=bias), expected, atol=1e-5, rtol=1e-5)
    assert layer.query.weight.shape == (24, 12) and layer.output.weight.shape == (12, 24)
