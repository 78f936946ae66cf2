"""Learning rates that fall from the output down, so that what pretraining taught first changes least.

Clark et al. 2020, "ELECTRA", appendix B, where a layer's rate is that of the layer above it times the decay.
"""

import re
from collections.abc import Iterator

from torch import nn

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_INPUT = re.compile(r"embedding|relative_bias")


def depths(model: nn.Module) -> dict[str, int]:
    """Return how far below the output each trainable parameter is, by its name.

    0: output layer, heads and last norms; 1: a stack's last block; each block below it one more; embeddings, T5's
    relative positions among them, one more than the first block. T5's encoder is as deep as its decoder. (The authors'
    code leaves one power out, between the output layer and the last block.)
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    blocks = {name: int(found[1]) for name, _ in model.named_parameters() if (found := _BLOCK.search(name))}
    sizes: dict[str, int] = {}  # by what stands before "blocks"
    for name, number in blocks.items():
        stack = _stack(name)
        sizes[stack] = max(sizes.get(stack, 0), number + 1)
    deepest = max(sizes.values(), default=0) + 1
    return {
        name: sizes[_stack(name)] - blocks[name] if name in blocks else deepest if _INPUT.search(name) else 0
        for name in names
    }


def by_rate(model: nn.Module, layer_decay: float | None) -> Iterator[tuple[float, list[nn.Parameter]]]:
    """Yield the trainable parameters that share a learning rate, and what the rate is multiplied by, from the top down.

    Args:
        layer_decay: the factor from layer to layer; None: all parameters have one rate.
    """
    found = depths(model)
    if layer_decay is None:
        yield 1.0, [model.get_parameter(name) for name in found]
        return
    for depth in sorted(set(found.values())):
        yield layer_decay**depth, [model.get_parameter(name) for name, own in found.items() if own == depth]


def _stack(name: str) -> str:
    found = _BLOCK.search(name)
    return name[: found.start()] if found else ""
