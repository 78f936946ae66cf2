"""GLM once more, in loops over layers, rows and heads, with the score-multiplying mask of the authors' code.

Parameters are a dictionary under the published names, so that gradients come out under them too.
"""

import math
import os
from pathlib import Path

import torch
from torch import Tensor

VECTORS = Path(os.environ.get("STEMMA_GLM_VECTORS", Path(__file__).parents[4] / "shared/data/reference/glm"))


def shapes(layers: int, hidden: int, vocabulary: int, context: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint, as the format's description lists them."""
    found: dict[str, tuple[int, ...]] = {
        "word_embeddings.weight": (vocabulary, hidden),
        "transformer.position_embeddings.weight": (context + 1, hidden),
        "transformer.block_position_embeddings.weight": (context + 1, hidden),
    }
    for layer in range(layers):
        prefix = f"transformer.layers.{layer}."
        for name, out, inner in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", 4 * hidden, hidden),
            ("mlp.dense_4h_to_h", hidden, 4 * hidden),
        ):
            found[f"{prefix}{name}.weight"], found[f"{prefix}{name}.bias"] = (out, inner), (out,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}{name}.weight"] = found[f"{prefix}{name}.bias"] = (hidden,)
    found["transformer.final_layernorm.weight"] = found["transformer.final_layernorm.bias"] = (hidden,)
    return found


def random_tensors(layers: int, hidden: int, vocabulary: int, context: int, seed: int = 0) -> dict[str, Tensor]:
    """Parameters of which none is left at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(layers, hidden, vocabulary, context).items():
        found[name] = torch.randn(shape, generator=generator) * 0.15
        if name.endswith("layernorm.weight"):
            found[name] += 1.0
    return found


def logits(
    tensors: dict[str, Tensor], heads: int, tokens: Tensor, positions: Tensor, context_lengths: Tensor
) -> Tensor:
    """Return float [batch, length, vocabulary]."""
    rows = []
    for row in range(len(tokens)):
        x = tensors["word_embeddings.weight"][tokens[row]]
        x = x + tensors["transformer.position_embeddings.weight"][positions[row, 0]]
        x = x + tensors["transformer.block_position_embeddings.weight"][positions[row, 1]]
        layer = 0
        while f"transformer.layers.{layer}.input_layernorm.weight" in tensors:
            x = _layer(tensors, f"transformer.layers.{layer}.", heads, x, int(context_lengths[row]))
            layer += 1
        x = _norm(tensors, "transformer.final_layernorm", x)
        rows.append(x @ tensors["word_embeddings.weight"].t())
    return torch.stack(rows)


def _layer(tensors: dict[str, Tensor], prefix: str, heads: int, x: Tensor, context_length: int) -> Tensor:
    length, hidden = x.shape
    width = hidden // heads
    sees = torch.zeros(length, length)
    for i in range(length):
        for j in range(length):
            sees[i, j] = float(j < context_length or j <= i)
    fused = _affine(tensors, prefix + "attention.query_key_value", _norm(tensors, prefix + "input_layernorm", x))
    mixed = []
    for head in range(heads):
        query, key, value = (
            fused[:, part * hidden + head * width : part * hidden + (head + 1) * width] for part in range(3)
        )
        scores = query @ key.t() / math.sqrt(width)
        scores = scores * sees - 65504.0 * (1 - sees)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed.append(weights @ value)
    x = x + _affine(tensors, prefix + "attention.dense", torch.cat(mixed, dim=-1))
    inner = _affine(tensors, prefix + "mlp.dense_h_to_4h", _norm(tensors, prefix + "post_attention_layernorm", x))
    inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    return x + _affine(tensors, prefix + "mlp.dense_4h_to_h", inner)


def _norm(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
    return scaled * tensors[name + ".weight"] + tensors[name + ".bias"]


def _affine(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ tensors[name + ".weight"].t() + tensors[name + ".bias"]
