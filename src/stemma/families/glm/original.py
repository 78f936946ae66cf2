"""Checkpoints of the authors' own code (THUDM/GLM): a tag, pickled files of one or several model-parallel workers.

    <directory>/latest_checkpointed_iteration.txt                the tag
    <directory>/<tag>/mp_rank_00_model_states.pt ...             {"module": {name: tensor}, ...}, a worker each

There is no configuration: the sizes follow from the tensors' shapes, except the number of attention heads.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.glm.checkpoint import from_published
from stemma.families.glm.model import GLM

TAG = "latest_checkpointed_iteration.txt"
HEAD_WIDTH = 64  # of every published GLM

_SHARD = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_RECONSTRUCT: Any = np.zeros(1).__reduce__()[0]
# Beside tensors such a file holds the state of the random number generators.
_ALLOWED: list[Any] = [
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),  # NumPy 1
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),  # NumPy 2
]


def is_original(directory: Path) -> bool:
    """Return whether a folder has this layout, or is the inner folder of it."""
    return (directory / TAG).is_file() or (not (directory / "config.json").exists() and bool(_shards(directory)))


def load_original(
    directory: Path,
    *,
    heads: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    trust_pickle: bool = False,
) -> GLM:
    """Load a checkpoint of THUDM/GLM, its model-parallel parts merged.

    Args:
        directory: the folder with the tag, or the one with the `mp_rank_*` files.
        heads: attention heads; default: 64 numbers a head, as in every published model.
        dtype: of the parameters, default: as stored. device: default: the CPU.
        trust_pickle: run whatever code the files contain; only some training states need that, no weights.
    Raises:
        InputError: files missing, broken, not of this layout or not safe to read; sizes that contradict each other.
    """
    folder = _tagged(directory)
    shards = [_read(path, trust_pickle) for path in _shards(folder)]
    if not shards:
        raise InputError(f"{folder}: no mp_rank_00_model_states.pt, expected the files of THUDM/GLM")
    tensors = MergedShards(shards, folder)
    return from_published(_sizes(tensors, heads, folder), tensors, dtype=dtype, device=device)


class MergedShards(Mapping[str, Tensor]):
    """The tensors of all model-parallel workers, joined when they are asked for (Megatron-LM's division).

    Raises:
        InputError: the workers' files hold different tensors, or tensors that cannot be joined.
    """

    def __init__(self, shards: Sequence[Mapping[str, Tensor]], folder: Path) -> None:
        self._shards, self._folder = shards, folder
        for rank, shard in enumerate(shards):
            differing = set(shard) ^ set(shards[0])
            if differing:
                raise InputError(f"{folder}: tensor '{min(differing)}' is in some workers' files only (rank {rank})")

    def __getitem__(self, name: str) -> Tensor:
        parts = [shard[name] for shard in self._shards]
        try:
            return merged(name, parts)
        except RuntimeError as error:
            raise InputError(f"{self._folder}: the parts of tensor '{name}' do not fit together") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards[0])

    def __len__(self) -> int:
        return len(self._shards[0])


def merged(name: str, parts: Sequence[Tensor]) -> Tensor:
    """Join the workers' parts of a tensor.

    The fused query, key and value are divided each for itself; the embedding and the first map of the feed-forward by
    rows; the maps back into the residual stream by columns; norms, positions and those maps' biases not at all.
    """
    if len(parts) == 1:
        return parts[0]
    if "query_key_value" in name:
        thirds = [part.chunk(3) for part in parts]
        return torch.cat([third[index] for index in range(3) for third in thirds])
    if name.endswith("word_embeddings.weight") or "dense_h_to_4h" in name:
        return torch.cat(list(parts))
    if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        return torch.cat(list(parts), dim=1)
    return parts[0]


def _tagged(directory: Path) -> Path:
    path = directory / TAG
    if not path.is_file():
        return directory
    tag = path.read_text(encoding="utf-8", errors="replace").strip()
    folder = directory / tag
    if not tag or Path(tag).name != tag or not folder.is_dir():
        raise InputError(f"{path}: names '{tag}', and there is no such folder beside it")
    return folder


def _shards(folder: Path) -> list[Path]:
    """Return the workers' files in the order of their ranks.

    Raises:
        InputError: a rank is missing.
    """
    ranks = {int(match[1]): path for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))}
    missing = sorted(set(range(len(ranks))) - set(ranks))
    if missing:
        raise InputError(f"{folder}: mp_rank_{missing[0]:02d}_model_states.pt is missing, others are there")
    return [ranks[rank] for rank in sorted(ranks)]


def _read(path: Path, trust_pickle: bool) -> dict[str, Tensor]:
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=zipped)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"code or objects of {found[1]}" if found else "something other than tensors"
        raise InputError(
            f"{path}: refused, it holds {what}; if you trust the file: load_original(..., trust_pickle=True)"
        ) from error
    except Exception as error:  # a truncated pickle makes its reader fail in many ways
        raise InputError(f"{path}: truncated or not a torch file ({type(error).__name__}: {error})") from error
    module = content.get("module") if isinstance(content, dict) else None
    if not isinstance(module, dict) or not all(isinstance(value, Tensor) for value in module.values()):
        raise InputError(f"{path}: expected a dictionary with the tensors under 'module'")
    return module


def _sizes(tensors: Mapping[str, Tensor], heads: int | None, folder: Path) -> dict[str, Any]:
    """Read the sizes off the tensors, in the words of the published config.json."""
    try:
        vocabulary, hidden = tensors["word_embeddings.weight"].shape
        rows = len(tensors["transformer.position_embeddings.weight"])
    except KeyError as error:
        raise InputError(f"{folder}: tensor {error} is missing, so this is no GLM") from error
    if heads is None and hidden % HEAD_WIDTH:
        raise InputError(
            f"{folder}: cannot tell the attention heads of a width of {hidden}: load_original(..., heads=)"
        )
    block_positions = "transformer.block_position_embeddings.weight" in tensors
    layers = {int(match[1]) for name in tensors if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}
    return {
        "model_type": "glm",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "max_sequence_length": rows - 1 if block_positions else rows,
        "num_layers": len(layers),
        "num_attention_heads": heads or hidden // HEAD_WIDTH,
        "block_position_encoding": block_positions,
    }
