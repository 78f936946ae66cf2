"""Adafactor against a straight transcription of its formulas in NumPy, and against torch's own."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from stemma.training.adafactor import Adafactor
from stemma.training.distributed import full_tensor, joined_workers, shard


def rms(x):
    return np.sqrt(np.mean(x**2))


def transcription(x, gradients, rates):
    """Algorithms 4 and 5 with the settings of algorithm 6, line by line, in float64 (rates: relative step sizes)."""
    factored = x.ndim == 2 and min(x.shape) >= 128
    r = np.zeros(x.shape[0])
    c = np.zeros(x.shape[-1])
    v = np.zeros(x.shape)
    for t, (g, rho) in enumerate(zip(gradients, rates, strict=True), start=1):
        alpha = max(1e-3, rms(x)) * rho
        beta = 1 - t**-0.8
        square = g**2 + 1e-30
        if factored:
            n, m = x.shape
            r = beta * r + (1 - beta) * square.sum(1)
            c = beta * c + (1 - beta) * square.sum(0)
            v = np.outer(r, c) / r.sum()
            assert v.shape == (n, m)
        else:
            v = beta * v + (1 - beta) * square
        u = g / np.sqrt(v)
        u = u / max(1, rms(u) / 1.0)
        x = x - alpha * u
    return x


@pytest.mark.parametrize("shape", [(130, 150), (150, 128), (127, 200), (40,), (3, 5)])
@pytest.mark.parametrize("start", [1.0, 1e-5], ids=["usual", "nearly zero"])
def test_updates_equal_the_formula(shape, start):
    random = np.random.default_rng(0)
    x = start * random.standard_normal(shape)
    # Gradients of very different sizes: the clipping acts on some updates and not on others.
    gradients = [random.standard_normal(shape) * size for size in (1.0, 30.0, 0.01, 1e-6, 2.0, 1.0)]
    rates = [0.01, 0.01, 0.02, 0.005, 0.3, 0.01]
    parameter = nn.Parameter(torch.tensor(x, dtype=torch.float32))
    optimizer = Adafactor([parameter], learning_rate=1.0)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    expected = transcription(np.float32(x).astype(np.float64), gradients, rates)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-4, atol=2e-6 * rms(expected))


def test_the_state_of_a_matrix_is_a_row_and_a_column():
    parameter = nn.Parameter(torch.randn(130, 200))
    parameter.grad = torch.randn(130, 200)
    optimizer = Adafactor([parameter], learning_rate=0.01)
    optimizer.step()
    assert {name: tuple(value.shape) for name, value in optimizer.state[parameter].items()} == {
        "step": (), "rows": (130,), "columns": (200,),
    }  # fmt: skip


def test_it_is_torchs_while_the_rate_is_below_its_bound():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((128, 160), (70,))]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    optimizers = Adafactor(ours, learning_rate=0.01), torch.optim.Adafactor(theirs, lr=0.01, eps=(1e-30, 1e-3))
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_parameters_without_a_gradient_stay():
    parameter = nn.Parameter(torch.ones(3))
    Adafactor([parameter], learning_rate=0.1).step()
    assert torch.equal(parameter, torch.ones(3))


def make_layer():
    torch.manual_seed(0)
    return nn.Linear(150, 131)


def train(layer, weights):
    optimizer = Adafactor(layer.parameters(), learning_rate=0.1)
    for weight in weights:
        (layer(torch.eye(150)) * weight).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def work(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    layer = make_layer()
    shard(layer, joined_workers())
    optimizer = train(layer, torch.load(folder / "weights"))
    found = {name: full_tensor(parameter.detach()) for name, parameter in layer.named_parameters()}
    assert {type(value) for value in optimizer.state[layer.weight].values()} == {torch.Tensor}
    if rank == 0:
        torch.save(found, folder / "found")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_workers_equal_one_process(tmp_path):
    weights = torch.randn(3, 150, 131)
    torch.save(weights, tmp_path / "weights")
    layer = make_layer()
    train(layer, weights)
    multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    for name, value in torch.load(tmp_path / "found").items():
        torch.testing.assert_close(value, layer.get_parameter(name).detach(), rtol=1e-6, atol=1e-6)
