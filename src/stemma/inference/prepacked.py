"""Faster decoding on a CPU: weights laid out once the way oneDNN reads them, and products fused with what follows.

One row at a time, a product is as fast as its weight is read. PyTorch's own layout reaches a third to a half of the
memory's bandwidth, oneDNN's nearly all of it (see benchmarks/decode.py).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stemma.layers.attention import MultiHeadAttention
from stemma.layers.feed_forward import ACTIVATIONS, FeedForward

logger = logging.getLogger(__name__)

# Activations that oneDNN applies before the product is written to memory: name and algorithm of ours.
_FUSED = {"gelu_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none"), "relu": ("relu", "")}


@contextmanager
def prepacked(model: Any, rows: int, *, release: bool = False) -> Iterator[None]:
    """Inside this block, let a model on a CPU multiply with prepacked weights, where that is possible.

    Queries, keys and values become one product, the feed-forward's activation part of another. The results differ from
    the model's own by rounding only. The block is for inference: there are no gradients through the packed weights, and
    they do not follow changes of the parameters. Inside another such block it does nothing.

    Packing costs about as much time as three to five tokens, and memory for a second copy of the weights.

    Args:
        model: with `logits(hidden)` and `output_weight`, made of `MultiHeadAttention`, `FeedForward` and linear maps.
        rows: about how many rows a product will have; the best layout depends on it, the results do not.
        release: free the parameters inside the block and rebuild them at its end, so that only the output projection,
            where it is tied to the embedding, exists twice. The model can then not be saved or copied inside.
    """
    if "logits" in vars(model):
        yield
        return
    obstacle = _obstacle(model)
    if obstacle:
        logger.info("decoding with the model's own products: %s", obstacle)
        yield
        return
    packing = _Packing(rows, release)
    try:
        packing.apply(model)
        logger.info("decoding with prepacked weights: %.1f MB, %d products", packing.bytes / 1e6, packing.products)
        yield
    finally:
        packing.undo()


def _obstacle(model: nn.Module) -> str:
    """Why a model's weights cannot be packed, or ""."""
    weights = {type(parameter) for parameter in model.parameters()}
    devices = {parameter.device.type for parameter in model.parameters()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if devices != {"cpu"}:
        return "the model is not on a CPU"
    if model.training:
        return "the model is in training mode"
    if weights != {nn.Parameter} or len(dtypes) > 1:
        return "the parameters are not plain tensors of one type"
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_reorder_linear_weight"):
        return "this build of PyTorch lacks oneDNN's prepacked product"
    if dtypes == {torch.float32} or (dtypes == {torch.bfloat16} and operators._is_mkldnn_bf16_supported()):
        return ""
    return f"no such product for {dtypes.pop()} on this processor"


class _Packing:
    """The replaced methods, and what it takes to undo them."""

    def __init__(self, rows: int, release: bool) -> None:
        self.rows, self.release = rows, release
        self.bytes = self.products = 0
        self._replaced: list[tuple[nn.Module, str]] = []
        self._released: list[tuple[Tensor, list[Tensor], list[int]]] = []

    @torch.no_grad()
    def apply(self, model: Any) -> None:
        """Replace the products of a model."""
        self._replace(model, "logits", self._product(model.output_weight, None))
        done = {getattr(model, "output", None)}
        for module in model.modules():
            if isinstance(module, MultiHeadAttention):
                maps = (module.query, module.key, module.value)
                self._replace(module, "project", _projection(self._linear(maps), module.heads))
                done |= set(maps)
            elif type(module) is FeedForward:
                fused = next((fused for name, fused in _FUSED.items() if ACTIVATIONS[name] is module.activation), None)
                if fused is not None:
                    self._replace(module, "forward", _feed_forward(self._linear([module.up], *fused), module.down))
                    done.add(module.up)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module not in done:
                self._replace(module, "forward", self._linear([module]))
            elif isinstance(module, nn.Dropout):
                self._replace(module, "forward", _identity)
            elif isinstance(module, nn.LayerNorm):
                self._replace(module, "forward", _layer_norm(module))

    @torch.no_grad()
    def undo(self) -> None:
        """Give the model its own methods and parameters back."""
        while self._replaced:
            module, name = self._replaced.pop()
            delattr(module, name)
        with torch.inference_mode(False):
            while self._released:
                packed, weights, sizes = self._released[-1]
                for weight, part in zip(weights, packed.to_dense().split(sizes), strict=True):
                    weight.data = part.clone() if len(weights) > 1 else part
                self._released.pop()

    def _replace(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        setattr(module, name, function)
        self._replaced.append((module, name))

    def _linear(self, maps: Sequence[nn.Linear], activation: str = "none", algorithm: str = "") -> "_Product":
        """Return one packed product for maps of one input and equal sizes."""
        weights: list[Tensor] = [linear.weight for linear in maps]
        biases: list[Tensor] = [linear.bias for linear in maps if linear.bias is not None]
        bias = torch.cat(biases) if biases else None
        product = self._product(
            torch.cat(tuple(weights)) if len(weights) > 1 else weights[0], bias, activation, algorithm
        )
        if self.release:
            self._released.append((product.packed, weights, [len(weight) for weight in weights]))
            for weight in weights:
                weight.data = weight.new_empty(0)
        return product

    def _product(
        self, weight: Tensor, bias: Tensor | None, activation: str = "none", algorithm: str = ""
    ) -> "_Product":
        self.bytes += weight.nbytes
        self.products += 1
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), self.rows)
        return _Product(packed, bias, activation, algorithm)


class _Product:
    """`activation(x @ weight.T + bias)` with a packed weight."""

    def __init__(self, packed: Tensor, bias: Tensor | None, activation: str, algorithm: str) -> None:
        self.packed, self.bias, self.activation, self.algorithm = packed, bias, activation, algorithm
        self._operator = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        return self._operator(x, self.packed, self.bias, self.activation, [], self.algorithm)


def _projection(product: _Product, heads: int) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return `MultiHeadAttention.project` with one product for the three maps."""

    def project(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = product(x).view(x.shape[0], x.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = fused.unbind()  # [batch, heads, length, head_dim] each
        return query, key, value

    return project


def _identity(x: Tensor) -> Tensor:
    return x


def _layer_norm(module: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """Return the norm's `forward` without the checks that cost as much as a norm of one row."""
    shape, weight, bias, epsilon = module.normalized_shape, module.weight, module.bias, module.eps

    def forward(x: Tensor) -> Tensor:
        return torch.layer_norm(x, shape, weight, bias, epsilon, False)

    return forward


def _feed_forward(up: _Product, down: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Return `FeedForward.forward` with the activation inside the first product."""

    def forward(x: Tensor) -> Tensor:
        return down(up(x))

    return forward
