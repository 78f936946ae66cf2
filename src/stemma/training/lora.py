"""LoRA for every family: adapt linear layers in place, train only that, merge (Hu et al. 2021; see `layers.lora`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import nn

from stemma.errors import InputError, closest
from stemma.layers.linear import Linear
from stemma.layers.lora import LoRALinear
from stemma.training.distributed import blocks_of

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class LoRAConfig:
    """Which layers are adapted, and how.

    Args:
        rank: of each update. alpha: updates are scaled by alpha / rank. dropout: of the updates' input.
        targets: our names of linear layers inside the blocks ("query", "key", "value", "output", "up", "gate",
            "down"), or "all-linear". The paper adapts ("query", "value").
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora: rank is {self.rank}, expected at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora: dropout is {self.dropout}, expected a probability below 1")
        if not self.targets or (isinstance(self.targets, str) and self.targets != "all-linear"):
            raise InputError(f"lora: targets is {self.targets!r}, expected 'all-linear' or a list of layers' names")


def add_lora(model: nn.Module, config: LoRAConfig, *, trainable: Sequence[str] = ()) -> None:
    """Adapt linear layers inside the blocks of a model, in place, and freeze everything else.

    Do it before the blocks are compiled, sharded or told to recompute activations.

    Args:
        model: of any family, or a module round one.
        trainable: names of modules or parameters that stay trainable: a new head.
    Raises:
        InputError: a name that the model does not have, or a model that has no linear layers, or adapters already.
    """
    refuse_second(model)
    found = [
        (parent, name, child)
        for block in blocks_of(model)
        for parent in block.modules()
        for name, child in parent.named_children()
        if isinstance(child, Linear)
    ]
    if not found:
        raise InputError("lora: the blocks of this model have no linear layers to adapt")
    names = {name for _, name, _ in found}
    targets = names if config.targets == "all-linear" else set(config.targets)
    for target in sorted(targets - names):
        expected = ", ".join(sorted(names))
        raise InputError(f"lora: no linear layer '{target}' in the blocks{closest(target, names)}, expected {expected}")
    kept = [_parameters_of(model, name) for name in trainable]
    model.requires_grad_(False)
    for parent, name, child in found:
        if name in targets:
            setattr(parent, name, LoRALinear(child, config.rank, config.alpha, config.dropout))
    for parameter in sum(kept, []):
        parameter.requires_grad_(True)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the adapted layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the adapters, a shared one once."""
    return list(dict.fromkeys(parameter for layer in lora_layers(model).values() for parameter in (layer.a, layer.b)))


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Let a model with adapters, not merged ones, be its base in this block.

    A policy that is trained by adapters so has its reference in itself.
    """
    layers = lora_layers(model).values()
    try:
        for layer in layers:
            layer.active = False
        yield
    finally:
        for layer in layers:
            layer.active = True


def merge_lora(model: Model) -> Model:
    """Add the updates to the weights and return the model, changed in place: a plain one again, all of it trainable."""
    for name, layer in lora_layers(model).items():
        layer.merge()
        replace_module(model, name, layer.base)
    return model.requires_grad_(True)


def refuse_second(model: nn.Module) -> None:
    """Raise an InputError if a model has adapters."""
    if lora_layers(model):
        raise InputError("lora: the model has adapters already; merge them first")


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of the one of this name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _parameters_of(model: nn.Module, name: str) -> list[nn.Parameter]:
    found = [p for own, p in model.named_parameters() if own == name or own.startswith(f"{name}.")]
    if not found:
        names = [module for module, _ in model.named_modules()]
        raise InputError(f"lora: nothing is named '{name}' in the model{closest(name, names)}")
    return found
