"""Cross-attention against torch.nn.MultiheadAttention, with padding and with several rows a source."""

import pytest
import torch
from torch import nn

from stemma.layers.cross_attention import CrossAttention, source_mask

PADDING = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True] + [False] * 6])


@pytest.fixture
def layers() -> tuple[CrossAttention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    ours, theirs = CrossAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        for kind in ("weight", "bias"):
            parts = [getattr(part, kind) for part in (ours.query, ours.key, ours.value)]
            getattr(theirs, f"in_proj_{kind}").copy_(torch.cat(parts))
            getattr(theirs.out_proj, kind).copy_(getattr(ours.output, kind))
    return ours, theirs


@pytest.mark.parametrize("length", [1, 5, 9])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["all real", "padded"])
def test_output_and_gradients(layers, padding, length):
    ours, theirs = layers
    encoded, x = torch.randn(3, 7, 12, requires_grad=True), torch.randn(3, length, 12)
    output = ours(x, *ours.project(encoded), source_mask(padding))
    expected, _ = theirs(x, encoded, encoded, key_padding_mask=None if padding is None else ~padding)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad((result * x).sum(), encoded)[0] for result in (output, expected)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 4])
def test_rows_that_share_a_source(layers, length):
    ours, _ = layers
    encoded, x = torch.randn(3, 7, 12), torch.randn(6, length, 12)
    key, value = ours.project(encoded)
    alone = ours(
        x, key.repeat_interleave(2, 0), value.repeat_interleave(2, 0), source_mask(PADDING.repeat_interleave(2, 0))
    )
    torch.testing.assert_close(ours(x, key, value, source_mask(PADDING)), alone, atol=1e-6, rtol=1e-6)
