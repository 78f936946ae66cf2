"""What the machine can do: precision, the matrix product rate that training is measured against, denormals."""

import ctypes
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from stemma.layers.linear import linear

# mallopt's numbers in glibc's malloc.h: when the end of the heap is given back, and how many blocks are mapped alone.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def prepare_processor(*, training: bool = False) -> None:
    """Treat denormal numbers as 0: without this a model driven to a loss near 0 runs ten times slower on a CPU.

    In `training`, where every step takes and frees the same memory, glibc keeps what is freed: to give it back and to
    be handed new pages, zeroed, is an eighth to a quarter of the time of a step on a CPU.
    """
    torch.set_flush_denormal(True)
    if training and sys.platform == "linux":
        allocator = ctypes.CDLL(None)
        if hasattr(allocator, "gnu_get_libc_version"):
            allocator.mallopt(_TRIM_THRESHOLD, -1)
            allocator.mallopt(_MMAP_MAX, 0)


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the matrix products for a recipe's "auto", "float32" or "bfloat16".

    "auto" asks what the processor is, not how fast it happens to be today, so that a resumed run decides alike:
    bfloat16 on GPUs that have it and on CPUs with matrix tiles (AMX), float32 elsewhere. With AVX-512's bfloat16
    products alone, which are twice as fast, the conversions around them decide: training a GPT of 10M parameters gained
    a third on one such processor and lost as much on another, so there it is the user's to try.
    """
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """Measure the floating-point operations per second of a large matrix product, the best of several.

    By the same road as the models' own products.
    """
    size = 8192 if device.type == "cuda" else 1024
    left = torch.ones(size, size, device=device, dtype=dtype)
    best, end = 0.0, time.perf_counter() + seconds
    for attempt in range(1000):
        start = time.perf_counter()
        linear(left, left)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if attempt:  # the first one sets the library up
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
        if attempt > 2 and time.perf_counter() > end:
            break
    return best


def matrix_parameters(model: nn.Module) -> int:
    """Count the parameters that every token is multiplied by: all matrices but embeddings that are only looked up."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    lookups = {id(table) for table in tables}
    count = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in lookups)
    output = getattr(model, "output_weight", None)
    if isinstance(output, Tensor) and any(_same_storage(output, table) for table in tables):
        count += output.numel()  # tied: looked up and multiplied by
    return count


def training_flops_per_token(model: nn.Module, length: int, objective: Any = None) -> float:
    """Estimate the floating-point operations of forward and backward pass per token of sequences of `length`.

    6 for each parameter that a token meets, and 6 * layers * hidden * length for the attention, of which a causal mask
    leaves one half of PaLM's 12 (Chowdhery et al. 2022, appendix B). Recomputed activations do not count.

    An `objective` that does not send every token through the whole model has a `training_flops(model, length)` of its
    own, for one sequence.
    """
    if hasattr(objective, "training_flops"):
        return float(objective.training_flops(model, length)) / length
    config = getattr(model, "config", None)
    attention = 6 * getattr(config, "layers", 0) * getattr(config, "hidden", 0) * length
    return 6.0 * matrix_parameters(model) + attention


def _same_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
