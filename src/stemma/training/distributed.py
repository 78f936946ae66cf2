"""Several processes on one training: the launch, the sums between them, and the sharding of a model from outside.

    torchrun --standalone --nproc-per-node 4 --no-python stemma pretrain gpt/gpt2

The engine is PyTorch's FSDP2; nothing in a model file knows of it. One process alone does not even import it: that
takes seconds.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

# One worker tokenises the corpus while the others wait.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Workers:
    """The processes that train together, seen from one of them; by default there is one."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")
    mesh: "DeviceMesh | None" = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return each value summed over the workers, which must all give the same names."""
        if self.world == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main worker run the block before the others do (it fills caches, they read them)."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()


def is_main() -> bool:
    """Return whether this process is alone or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def start_workers(device: str = "auto") -> Iterator[Workers]:
    """Join the workers that torchrun started, if it did.

    Args:
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Workers(device=torch.device(kind))
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield joined_workers(kind, local)
    finally:
        dist.destroy_process_group()


def joined_workers(kind: str = "cpu", local: int = 0) -> Workers:
    """Return the workers of the process group that this process is already in."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(kind, (dist.get_world_size(),), mesh_dim_names=("shard",))
    device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    return Workers(dist.get_rank(), dist.get_world_size(), device, mesh)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model: the members of its outermost `ModuleList`s."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [block for child in model.children() for block in blocks_of(child)]


def shard(root: nn.Module, workers: Workers) -> None:
    """Spread parameters, gradients and optimizer state over the workers: each block, then what is left, at the root.

    A tied embedding and output stay in one group, the root's. All that a step computes must happen inside the root's
    `forward`.
    """
    if workers.mesh is None:
        return
    from torch.distributed.fsdp import fully_shard

    for block in blocks_of(root):
        fully_shard(block, mesh=workers.mesh)
    fully_shard(root, mesh=workers.mesh)


def synchronize_gradients(root: nn.Module, wanted: bool) -> None:
    """Say whether the next backward pass sums gradients over the workers (only that of the last micro-batch need)."""
    if hasattr(root, "set_requires_gradient_sync"):  # a sharded one
        cast("FSDPModule", root).set_requires_gradient_sync(wanted)


def release(root: nn.Module) -> None:
    """Drop the gathered weights that a forward pass without a backward pass leaves at the root."""
    if hasattr(root, "reshard"):  # a sharded one
        cast("FSDPModule", root).reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded. All workers must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(example: Tensor, whole: Tensor) -> Tensor:
    """Return this worker's part of `whole`, placed as `example` is."""
    whole = whole.to(example.device)
    if not hasattr(example, "device_mesh"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharded = cast(DTensor, example)
    return distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)
