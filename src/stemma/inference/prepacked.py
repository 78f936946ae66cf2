"""Faster decoding on a CPU: inside `prepacked`, a model multiplies with weights laid out for a few rows at a time."""

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stemma.families.mistral.model import GroupedQueryAttention
from stemma.inference.products import (
    FUSED_ACTIVATIONS,
    OneDNNProduct,
    Product,
    StreamedProduct,
    available,
    fastest,
    pack,
)
from stemma.inference.quantized_products import QuantizedLinear, is_quantized
from stemma.layers.attention import MultiHeadAttention
from stemma.layers.feed_forward import ACTIVATIONS, FeedForward, GatedFeedForward
from stemma.layers.norms import RMSNorm

logger = logging.getLogger(__name__)


@contextmanager
def prepacked(model: Any, rows: int, *, release: bool | None = False) -> Iterator[None]:
    """Inside this block, let a model on a CPU use the products of `inference.products`, where that is possible.

    The results differ from the model's own by rounding only. The block is for inference: there are no gradients through
    the products, and those that lay weights out anew do not follow changes of the parameters; that takes about as long
    as three to five tokens. Inside another such block it does nothing.

    Args:
        model: with `logits(hidden)`, which multiplies by `output_weight` and adds `output_bias`, where there is one,
            made of `MultiHeadAttention`, `FeedForward` and linear maps.
        rows: about how many rows a product will have; the best layout depends on it, the results do not.
        release: for products that lay weights out anew. False keeps the parameters; memory then holds most of the
            weights twice, and nothing is packed if that would take more than half of what is free. True frees the
            parameters and rebuilds them, bit by bit, at the end of the block: only the output projection is held twice,
            and the model cannot be saved or copied inside; somewhat slower for one row. None: True if memory is scarce,
            else False.
    """
    if "logits" in vars(model):
        yield
        return
    dtype = next(model.parameters()).dtype
    kind = fastest(dtype, rows)
    scarce = kind is not StreamedProduct and _size(model) > _free_memory() / 2
    if release is None:
        release = scarce
    obstacle = _obstacle(model) or ("too little memory to hold the weights twice" if scarce and not release else "")
    packing = _Packing(OneDNNProduct if release else kind, rows, release)  # the one that can be undone
    try:
        if obstacle:
            logger.info("decoding with the model's own products: %s", obstacle)
        else:
            packing.apply(model)
            made, name = packing.products, packing.kind.__name__
            logger.info("decoding with %d packed products: %s, for %d rows", made, name, rows)
        if not model.training and model.output_weight.device.type == "cpu":
            packing.simplify(model)
            if is_quantized(model) or (packing.kind is StreamedProduct and not obstacle):
                _compile(model, dtype, rows)
        yield
    finally:
        packing.undo()


def _obstacle(model: nn.Module) -> str:
    """Why a model's weights cannot be packed, or ""."""
    weights = {type(parameter) for parameter in model.parameters()}
    devices = {parameter.device.type for parameter in model.parameters()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if is_quantized(model):
        return "its weights are quantised"
    if devices != {"cpu"}:
        return "the model is not on a CPU"
    if model.training:
        return "the model is in training mode"
    if weights != {nn.Parameter} or len(dtypes) > 1:
        return "the parameters are not plain tensors of one type"
    dtype = dtypes.pop()
    return "" if available(dtype) else f"no faster product for {dtype} here"


@torch.no_grad()
def _compile(model: nn.Module, dtype: torch.dtype, rows: int) -> None:
    """Use the smallest and the largest map once for each number of rows that has a kernel of its own: the first text
    on a machine would wait for some seconds while they are compiled, and they are then kept on disk."""
    maps = [module for module in model.modules() if isinstance(module, nn.Linear | QuantizedLinear)]
    maps.sort(key=lambda module: module.in_features * module.out_features)
    for module in maps[:1] + maps[-1:]:
        for few in (1, 2, 4, 8):
            if few <= rows:
                module(torch.zeros(few, module.in_features, dtype=dtype))


def _size(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _free_memory() -> float:
    """The bytes that programs can still take without swapping, as Linux estimates them; elsewhere infinity."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return float("inf")
    return int(found[1]) * 1024 if found else float("inf")


class _Packing:
    """The replaced methods, and what it takes to undo them."""

    def __init__(self, kind: type[Product], rows: int, release: bool) -> None:
        self.kind, self.rows, self.release, self.products = kind, rows, release, 0
        self._replaced: list[tuple[nn.Module, str]] = []
        self._released: list[tuple[OneDNNProduct, Sequence[nn.Linear], list[int]]] = []

    @torch.no_grad()
    def apply(self, model: Any) -> None:
        """Replace the products of a model."""
        self._use(model, "logits", pack(self.kind, model.output_weight, getattr(model, "output_bias", None), self.rows))
        done = {getattr(model, "output", None)}
        if self.kind is not StreamedProduct:  # which takes weights as they lie
            done |= self._join(model)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module not in done:
                self._use(module, "forward", self._pack([module]))

    def simplify(self, model: nn.Module) -> None:
        """Replace what is slow for one row beside the products."""
        for module in model.modules():
            if "forward" in vars(module):  # inside another block
                continue
            if isinstance(module, nn.Dropout):
                self._set(module, "forward", _identity)
            elif isinstance(module, nn.LayerNorm):
                self._set(module, "forward", _layer_norm(module))
            elif isinstance(module, RMSNorm) and module.weight.dtype == torch.float32:
                self._set(module, "forward", _root_mean_square_norm(module))

    def _join(self, model: Any) -> set[nn.Module]:
        """Make maps of one input one product, and an activation its end; return the maps."""
        done: set[nn.Module] = set()
        for module in model.modules():
            if isinstance(module, MultiHeadAttention | GroupedQueryAttention):
                maps = [module.query, module.key, module.value]
                shared = getattr(module, "key_value_heads", module.heads)
                self._use(module, "project", self._pack(maps), split_heads(module.heads, shared))
                done |= set(maps)
            elif type(module) is GatedFeedForward:
                maps = [module.gate, module.up]
                self._use(module, "forward", self._pack(maps), gated(module))
                done |= set(maps)
            elif type(module) is FeedForward and self.kind is OneDNNProduct:
                name = next((name for name in FUSED_ACTIVATIONS if ACTIVATIONS[name] is module.activation), None)
                if name is not None:
                    self._use(module, "forward", self._pack([module.up], name), module.down)
                    done.add(module.up)
        return done

    @torch.no_grad()
    def undo(self) -> None:
        """Give the model its own methods and parameters back."""
        while self._replaced:
            module, name = self._replaced.pop()
            delattr(module, name)
        with torch.inference_mode(False):
            while self._released:
                product, maps, sizes = self._released[-1]
                for linear, part in zip(maps, product.weight().split(sizes), strict=True):
                    linear.weight.data = part.clone() if len(maps) > 1 else part
                self._released.pop()

    def _pack(self, maps: Sequence[nn.Linear], activation: str | None = None) -> Product:
        """Return one product for maps of one input."""
        weights: list[Tensor] = [linear.weight for linear in maps]
        biases: list[Tensor] = [linear.bias for linear in maps if linear.bias is not None]
        weight = torch.cat(weights) if len(maps) > 1 else weights[0]
        bias = torch.cat(biases) if biases else None
        if self.kind is not OneDNNProduct:
            return pack(self.kind, weight, bias, self.rows)
        product = OneDNNProduct(weight, bias, self.rows, activation)
        if self.release:
            self._released.append((product, maps, [len(weight) for weight in weights]))
            for linear in maps:
                linear.weight.data = linear.weight.new_empty(0)
        return product

    def _use(self, module: nn.Module, name: str, product: Product, then: Callable[[Tensor], Any] | None = None) -> None:
        """Replace a method by a product and what follows it; beyond the product's rows the method stays what it is."""
        self.products += 1
        packed = product if then is None else _compose(product, then)
        if product.most_rows is None:
            self._set(module, name, packed)
            return
        most_rows, own = product.most_rows, getattr(module, name)

        def method(x: Tensor) -> Any:
            return packed(x) if 0 < x.numel() <= most_rows * x.shape[-1] else own(x)

        self._set(module, name, method)

    def _set(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        setattr(module, name, function)
        self._replaced.append((module, name))


def _compose(product: Product, then: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda x: then(product(x))


def split_heads(heads: int, shared: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return what makes query, key and value of their joint product, [batch, length, (heads + 2 shared) * head_dim]."""

    def split(x: Tensor) -> tuple[Tensor, ...]:
        return x.unflatten(-1, (heads + 2 * shared, -1)).transpose(1, 2).split([heads, shared, shared], dim=1)

    return split


def gated(module: GatedFeedForward) -> Callable[[Tensor], Tensor]:
    """Return what makes a gated feed-forward's result of its first two maps' joint product, [..., 2 * inner]."""

    def rest(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return module.down(module.activation(gate).mul_(up))

    return rest


def _identity(x: Tensor) -> Tensor:
    return x


def _layer_norm(module: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """Return the norm's `forward` without the checks that cost as much as a norm of one row."""
    shape, weight, bias, epsilon = module.normalized_shape, module.weight, module.bias, module.eps

    def forward(x: Tensor) -> Tensor:
        return torch.layer_norm(x, shape, weight, bias, epsilon, False)

    return forward


def _root_mean_square_norm(module: RMSNorm) -> Callable[[Tensor], Tensor]:
    """Return the norm's `forward` in the fewest kernels: x / sqrt(|x|^2 + n epsilon) * (weight sqrt(n))."""
    size = module.weight.numel()
    weight = module.weight.detach() * math.sqrt(size)
    least = torch.tensor(math.sqrt(size * module.epsilon))

    def forward(x: Tensor) -> Tensor:
        return (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(least)).mul_(weight)

    return forward
