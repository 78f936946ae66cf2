"""ViT's weights as its authors published them: NumPy archives of google-research/vision_transformer (Flax)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma.errors import InputError
from stemma.families.vit.model import ViT
from stemma.families.vit.timm import from_timm

_MAPS = {
    "norm1": "LayerNorm_0",
    "norm2": "LayerNorm_2",
    "mlp.fc1": "MlpBlock_3/Dense_0",
    "mlp.fc2": "MlpBlock_3/Dense_1",
}
_ATTENTION = "MultiHeadDotProductAttention_1"


def load_npz(path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> ViT:
    """Load a published file; its GELU is the tanh form, as in the authors' code.

    Raises:
        InputError: not such a file, or one with the hidden output layer of pretraining (`pre_logits`), which no other
            format has: take a file that was fine-tuned, or one of "augreg".
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a NumPy archive ({error})") from error
    if "cls" not in arrays or not any(name.startswith("Transformer/") for name in arrays):
        raise InputError(f"{path}: not a ViT of google-research/vision_transformer")
    if any(name.startswith("pre_logits/") for name in arrays):
        raise InputError(f"{path}: has the hidden output layer of pretraining (pre_logits), which is not supported")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in _named_as_timm(arrays).items()}
    heads = arrays[f"Transformer/encoderblock_0/{_ATTENTION}/query/bias"].shape[0]
    return from_timm(tensors, heads=heads, activation="gelu_tanh", dtype=dtype, device=device)


def _named_as_timm(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays by timm's names, with maps as [out, in]."""
    found = {"cls_token": arrays["cls"], "pos_embed": arrays["Transformer/posembed_input/pos_embedding"]}
    found["patch_embed.proj.weight"] = arrays["embedding/kernel"].transpose(3, 2, 0, 1)
    found["patch_embed.proj.bias"] = arrays["embedding/bias"]
    places = {"norm": "Transformer/encoder_norm", **({"head": "head"} if "head/kernel" in arrays else {})}
    layer = 0
    while f"Transformer/encoderblock_{layer}/LayerNorm_0/scale" in arrays:
        block = f"Transformer/encoderblock_{layer}"
        places |= {f"blocks.{layer}.{theirs}": f"{block}/{ours}" for theirs, ours in _MAPS.items()}
        parts: Any = [arrays[f"{block}/{_ATTENTION}/{part}/kernel"] for part in ("query", "key", "value")]
        biases = [arrays[f"{block}/{_ATTENTION}/{part}/bias"].reshape(-1) for part in ("query", "key", "value")]
        found[f"blocks.{layer}.attn.qkv.weight"] = np.concatenate([part.reshape(len(part), -1).T for part in parts])
        found[f"blocks.{layer}.attn.qkv.bias"] = np.concatenate(biases)
        output = arrays[f"{block}/{_ATTENTION}/out/kernel"]  # [heads, head_dim, hidden]
        found[f"blocks.{layer}.attn.proj.weight"] = output.reshape(-1, output.shape[-1]).T
        found[f"blocks.{layer}.attn.proj.bias"] = arrays[f"{block}/{_ATTENTION}/out/bias"]
        layer += 1
    for theirs, place in places.items():
        norm = f"{place}/scale" in arrays
        found[f"{theirs}.weight"] = arrays[f"{place}/scale"] if norm else arrays[f"{place}/kernel"].T
        found[f"{theirs}.bias"] = arrays[f"{place}/bias"]
    return found
