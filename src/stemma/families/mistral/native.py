"""Mistral's own releases: `params.json` and `consolidated*.safetensors`, read into the form of Hugging Face's.

Their rotary positions turn interleaved components (2i, 2i + 1); ours, as Hugging Face's, turn (i, i + head_dim / 2).
The rows of the queries' and keys' maps are therefore put into another order, one tensor at a time.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.directory import StoredTensors, read_json
from stemma.families.mistral.checkpoint import from_published
from stemma.families.mistral.model import Mistral
from stemma.families.weights import refuse_set

PARAMETERS = "params.json"
_NEEDED = ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size")
_CONTEXT = 32768  # params.json does not say; the papers' models were trained up to here

# Their names, as patterns, and Hugging Face's.
_NAMES = {
    r"tok_embeddings\.weight": "model.embed_tokens.weight",
    r"norm\.weight": "model.norm.weight",
    r"output\.weight": "lm_head.weight",
    r"layers\.(\d+)\.attention_norm\.weight": r"model.layers.\1.input_layernorm.weight",
    r"layers\.(\d+)\.ffn_norm\.weight": r"model.layers.\1.post_attention_layernorm.weight",
    r"layers\.(\d+)\.attention\.w([qkvo])\.weight": r"model.layers.\1.self_attn.\2_proj.weight",
    r"layers\.(\d+)\.feed_forward\.w1\.weight": r"model.layers.\1.mlp.gate_proj.weight",
    r"layers\.(\d+)\.feed_forward\.w2\.weight": r"model.layers.\1.mlp.down_proj.weight",
    r"layers\.(\d+)\.feed_forward\.w3\.weight": r"model.layers.\1.mlp.up_proj.weight",
    r"layers\.(\d+)\.feed_forward\.gate\.weight": r"model.layers.\1.block_sparse_moe.gate.weight",
    r"layers\.(\d+)\.feed_forward\.experts\.(\d+)\.w([123])\.weight": (
        r"model.layers.\1.block_sparse_moe.experts.\2.w\3.weight"
    ),
}
_INTERLEAVED = re.compile(r".*\.self_attn\.[qk]_proj\.weight")


def is_native(directory: Path) -> bool:
    """Tell whether a folder is such a release and not (also) a Hugging Face one."""
    return (directory / PARAMETERS).is_file() and not (directory / "config.json").is_file()


def load_native(
    directory: Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Mistral:
    """Load a folder with `params.json` and `consolidated*.safetensors`.

    Raises:
        InputError: a key of `params.json` is missing or not supported, no weights, or weights that do not fit.
    """
    path = directory / PARAMETERS
    files = sorted(directory.glob("consolidated*.safetensors"))
    if not files:
        raise InputError(
            f"{directory}: no weights, expected consolidated.safetensors or consolidated.00.safetensors, ..."
        )
    published = _published(read_json(path), path)
    return from_published(published, _HalfSplit(StoredTensors(directory, files), published), dtype=dtype, device=device)


def _published(parameters: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what config.json would say."""
    for key in _NEEDED:
        if not isinstance(parameters.get(key), int | float):
            raise InputError(f"{path}: {key} is {parameters.get(key)!r}, expected a number")
    refuse_set(parameters, ("vision_encoder", "quantization", "lora", "yarn", "llama_4_scaling", "qk_norm"), path)
    window = parameters.get("sliding_window")
    if isinstance(window, list):
        raise InputError(f"{path}: sliding_window is a list, expected one number for all layers")
    published = {
        "model_type": "mistral",
        "hidden_size": parameters["dim"],
        "num_hidden_layers": parameters["n_layers"],
        "head_dim": parameters["head_dim"],
        "intermediate_size": parameters["hidden_dim"],
        "num_attention_heads": parameters["n_heads"],
        "num_key_value_heads": parameters["n_kv_heads"],
        "rms_norm_eps": parameters["norm_eps"],
        "vocab_size": parameters["vocab_size"],
        "max_position_embeddings": parameters.get("max_seq_len", parameters.get("max_position_embeddings", _CONTEXT)),
        "sliding_window": window,
        "rope_theta": parameters.get("rope_theta", 10000.0),
        "tie_word_embeddings": parameters.get("tied_embeddings", False),
    }
    experts = parameters.get("moe")
    if experts:
        published |= {
            "model_type": "mixtral",
            "num_local_experts": experts["num_experts"],
            "num_experts_per_tok": experts["num_experts_per_tok"],
        }
    return published


class _HalfSplit(Mapping[str, Tensor]):
    """The tensors by Hugging Face's names, rotary rows in its order."""

    def __init__(self, tensors: StoredTensors, published: Mapping[str, Any]) -> None:
        self._tensors, self._head_dim = tensors, published["head_dim"]
        self._names = {_hugging_face_name(name): name for name in tensors}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[self._names[name]]
        if _INTERLEAVED.fullmatch(name) and tensor.dim() == 2 and len(tensor) % self._head_dim == 0:
            heads = tensor.view(-1, self._head_dim // 2, 2, tensor.shape[1])
            return heads.transpose(1, 2).reshape(tensor.shape)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _hugging_face_name(name: str) -> str:
    for pattern, replacement in _NAMES.items():
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return name
