"""The paged cache takes memory for the texts that are there, not for those that could be."""

import os
import sys
from pathlib import Path

import pytest
import torch

from stemma.inference.paged_cache import PagedCache


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_taken_when_it_is_written_to(dtype):
    before = resident()
    cache = PagedCache(windows=[None] * 2, heads=4, head_dim=64, memory=2**28, context=4096, dtype=dtype)
    [group] = cache.groups
    assert group.keys.dtype == dtype and group.keys.nbytes + group.values.nbytes > 2**27
    assert group.keys.data_ptr() % 64 == group.values.data_ptr() % 64 == 0
    assert resident() - before < 2**25
    group.keys[:, :600] = 1  # 600 of the blocks of both layers
    assert resident() - before > 600 * group.keys[:, 0].nbytes * 0.9
    assert not group.keys[:, 600:700].any() and not group.values[:, :100].any()
