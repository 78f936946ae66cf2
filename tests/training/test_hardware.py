"""Estimates of floating-point operations against the formula for GPT-2, and the choice of precision."""

import platform
import subprocess
import sys

import pytest
import torch

from stemma.families.gpt.model import GPT, PRESETS, GPTConfig
from stemma.training.hardware import choose_precision, matmul_rate, matrix_parameters, training_flops_per_token


@pytest.mark.parametrize("tied", [True, False])
def test_every_token_meets_the_matrices_and_the_output_but_not_the_tables(tied):
    config = GPTConfig(vocabulary=100, context=32, layers=3, hidden=16, heads=2, tie_output=tied, vocabulary_multiple=1)
    assert matrix_parameters(GPT(config)) == 3 * 12 * 16**2 + 100 * 16


def test_flops_of_gpt2_are_those_of_the_formula():
    with torch.device("meta"):
        model = GPT(PRESETS["gpt2"])
    # 12 L d^2 in the blocks, V d at the output; attention: scores and sums, forward and twice backward, half masked
    matrices = 12 * 12 * 768**2 + 50257 * 768
    attention = 12 * 2 * (2 * 768 * 1024) * 3 / 2
    assert training_flops_per_token(model, 1024) == pytest.approx(6 * matrices + attention)


def test_the_counted_products_are_the_estimated_ones():
    """PyTorch's own counter, on a model whose products all go through operators that it knows."""
    from torch.utils.flop_counter import FlopCounterMode

    config = GPTConfig(vocabulary=64, context=32, layers=2, hidden=32, heads=2)
    model, length = GPT(config).double(), 32  # float64 takes PyTorch's own road
    tokens = torch.randint(0, 64, (4, length))
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    products = counter.get_total_flops() / tokens.numel()
    # The counter takes attention as unmasked, and its backward pass as computing the scores once more.
    matrices = 6 * matrix_parameters(model)
    assert matrices <= products <= matrices + 2 * 2 * (2 * 32 * length) * 3.5


def test_precision_is_decided_by_what_the_processor_is(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_precision("float32", cpu) == torch.float32
    assert choose_precision("bfloat16", cpu) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_precision("auto", cpu) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision("auto", cpu) == torch.float32


def test_the_measured_rate_is_that_of_a_processor():
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32, seconds=0.01) < 1e14


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators decide for themselves")
@pytest.mark.parametrize("training", [True, False])
def test_only_training_keeps_the_memory_of_the_step_before(training):
    program = f"""
import resource, torch
from stemma.training.hardware import prepare_processor
prepare_processor(training={training})
for _ in range(12):  # until the pieces between the blocks have found their places
    torch.ones(16 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # 64 MiB anew are 32 faults if pages are huge, 16,384 if not.
    assert (int(done.stdout) < 16) == training
