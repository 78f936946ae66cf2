"""What is done to a model from outside before it is trained: recompute activations, compile, both block by block."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from stemma.training.distributed import blocks_of


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the input of each block for the backward pass and compute the rest again there."""
    for block in blocks_of(model):
        # The forward is replaced, not the module wrapped, so that the names of the parameters stay.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(model: nn.Module) -> None:
    """Compile each block in place with torch.compile; equal blocks share the compiled code."""
    for block in blocks_of(model):
        block.compile()
