"""The kernel over blocks equals attention over the keys in a row."""

import pytest
import torch
import torch.nn.functional as F

from stemma.inference import paged_attention


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("kernel", ["one thread", "threads", "none"])
def test_equals_attention_over_keys_in_a_row(window, key_heads, kernel, monkeypatch):
    if kernel == "none":
        monkeypatch.setattr(paged_attention, "_kernels", lambda: None)
    else:
        monkeypatch.setattr(paged_attention, "_MANY", 0 if kernel == "threads" else 1 << 40)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.manual_seed(0)
    block, lengths = 4, [1, 4, 11, 23]
    keys, values = torch.randn(2, 30, key_heads, block, 8)
    query = torch.randn(len(lengths), 4, 8)
    tables = torch.randperm(30)[:24].view(4, 6).int()
    first = [max(length - window, 0) if window else 0 for length in lengths]
    args = (tables, torch.tensor(lengths, dtype=torch.int32), torch.tensor(first, dtype=torch.int32))
    mixed = paged_attention.paged_attention(query, keys, values, *args, scale=0.3)
    for row, (length, start) in enumerate(zip(lengths, first, strict=True)):
        own = [
            buffer[tables[row].long()]
            .transpose(0, 1)
            .flatten(1, 2)[:, start:length]
            .repeat_interleave(4 // key_heads, 0)
            for buffer in (keys, values)
        ]
        expected = F.scaled_dot_product_attention(query[row].unsqueeze(1), *own, scale=0.3)[:, 0]
        torch.testing.assert_close(mixed[row], expected, rtol=1e-5, atol=1e-5)
