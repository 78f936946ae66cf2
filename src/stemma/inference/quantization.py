"""Models with weights of 8 or 4 bits: less memory, and less to read for each token."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stemma.errors import InputError, closest
from stemma.families.bert.model import BERT
from stemma.families.glm.model import GLM
from stemma.families.gpt.model import GPT
from stemma.families.lstm.model import LSTM
from stemma.families.mistral.model import GroupedQueryAttention, Mistral
from stemma.families.t5.model import T5
from stemma.families.transformer.model import Transformer
from stemma.inference.prepacked import gated, split_heads
from stemma.inference.quantized_products import GROUPS, PartOfLinear, QuantizedLinear, is_quantized
from stemma.layers.attention import MultiHeadAttention
from stemma.layers.experts import SparseExperts
from stemma.layers.feed_forward import GatedFeedForward

logger = logging.getLogger(__name__)

_FEWEST_OUTPUTS = 16  # smaller maps are cheap, and what they decide (a class, a span's end) is not
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Kind:
    """How weights are rounded: 8 bits by output, or 4 bits by groups of so many inputs."""

    bits: int
    group: int = GROUPS[0]

    @classmethod
    def named(cls, name: str) -> "Kind":
        """Return what "int8", "int4" or "int4:64" means; raises InputError for anything else."""
        kinds = {"int8": cls(8), "int4": cls(4)} | {f"int4:{group}": cls(4, group) for group in GROUPS}
        if name not in kinds:
            raise InputError(f"quantisation {name!r}{closest(name, kinds)}: expected one of {', '.join(kinds)}")
        return kinds[name]


def quantized(model: Model, kind: str) -> Model:
    """Return a copy of a model with rounded weights (see `quantize_`); what is not rounded is shared, not copied."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return quantize_(copy.deepcopy(model, shared), kind)


@torch.no_grad()
def quantize_(model: Model, kind: str) -> Model:
    """Round the weights of a model's linear maps in place, and return it: from now on it is for inference.

    Every linear map of any family becomes a `QuantizedLinear`, which holds the weight once, rounded; queries, keys and
    values become one map, and so do the two of a gate. A tied output projection gets a rounded weight of its own, and
    the embedding stays. So do routers and maps of less than 16 outputs. Such a model cannot be trained or saved.

    Args:
        model: on the device where it is to stay. It is put into eval mode.
        kind: "int8": a scale for each output (Dettmers et al. 2022, "LLM.int8()", section 3.1). "int4", "int4:64",
            "int4:128": a scale and a centre for each 32, 64, 128 inputs of an output; fewer where that does not divide
            them, and what 32 does not divide gets int8. Where a CPU has kernels for them, few rows of what is
            multiplied are rounded to 8 bits, too, and many to bfloat16.
    Raises:
        InputError: an unknown kind, or a model that is quantised already or recurrent.
    """
    how = Kind.named(kind)
    if is_quantized(model):
        raise InputError("the model's weights are quantised already")
    if isinstance(model, LSTM):
        raise InputError("an LSTM's weights are not rounded: its layers are no linear maps")
    before = _linear_bytes(model)
    model.eval()
    _untie(model, how)
    for module in model.modules():
        if isinstance(module, MultiHeadAttention | GroupedQueryAttention):
            joint = _join(module, ("query", "key", "value"), how)
            if joint is not None:
                shared = getattr(module, "key_value_heads", module.heads)
                _replace(module, "project", joint, split_heads(module.heads, shared))
        elif type(module) is GatedFeedForward:
            joint = _join(module, ("gate", "up"), how)
            if joint is not None:
                _replace(module, "forward", joint, gated(module))
    routers = {module.router for module in model.modules() if isinstance(module, SparseExperts)}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and _rounds(child) and child not in routers:
                setattr(module, name, QuantizedLinear(child.weight, child.bias, how.bits, how.group))
    maps = {module for module in model.modules() if isinstance(module, QuantizedLinear)}
    products = sorted({type(module.product).__name__ for module in maps})
    logger.info(
        "%d linear maps in %s by %s: %.0f MiB instead of %.0f",
        len(maps), kind, " and ".join(products), sum(m.product.bytes for m in maps) / 2**20, before / 2**20,
    )  # fmt: skip
    return model


def _untie(model: nn.Module, how: Kind) -> None:
    """Give every language model a rounded output projection, without the padding rows that are never predicted."""
    for module in list(model.modules()):
        if isinstance(module, GPT | Mistral | T5 | GLM | Transformer):
            owner: Any = module
            embedding = module.token_embedding
        elif isinstance(module, BERT):
            owner, embedding = module.masked_head, module.embeddings.token
        else:
            continue
        weight: Tensor = embedding.weight if owner.output is None else owner.output.weight
        owner.output = QuantizedLinear(weight[: module.config.vocabulary], None, how.bits, how.group)


def _join(module: Any, names: tuple[str, ...], how: Kind) -> QuantizedLinear | None:
    """Make maps of one input one map, and what was there its parts; None if any is not to be rounded."""
    maps = [getattr(module, name) for name in names]
    if not all(_rounds(one) for one in maps):
        return None
    biases = [one.bias for one in maps if one.bias is not None]
    weight, bias = torch.cat([one.weight for one in maps]), torch.cat(biases) if biases else None
    joint = QuantizedLinear(weight, bias, how.bits, how.group)
    start = 0
    for name, one in zip(names, maps, strict=True):
        setattr(module, name, PartOfLinear(joint, start, start + one.out_features))
        start += one.out_features
    return joint


def _rounds(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.out_features >= _FEWEST_OUTPUTS


def _replace(module: nn.Module, name: str, joint: QuantizedLinear, then: Callable[[Tensor], Any]) -> None:
    setattr(module, name, lambda x: then(joint(x)))


def _linear_bytes(model: nn.Module) -> int:
    return sum(module.weight.nbytes for module in model.modules() if isinstance(module, nn.Linear))
