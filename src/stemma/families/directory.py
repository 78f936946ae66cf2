"""A checkpoint directory: config.json, the weights and the tokenizer, as Hugging Face transformers lays them out.

Reading never copies more than the tensor at hand; replacing a directory never leaves one that loads wrongly.
"""

import json
import pickle
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stemma.errors import InputError, closest
from stemma.files import sync_directory, write_whole

# The file that a reader starts from, in the order of preference that transformers has.
WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
SHARD_BYTES = 5_000_000_000

_DESCRIPTION_FILES = ["*.json", "*.txt", "*.model", "vocab.bpe"]
_SAFETENSORS_FILES = ["model.safetensors", "model-*.safetensors"]
_PICKLED_FILES = ["pytorch_model.bin", "pytorch_model-*.bin"]
_NATIVE_FILES = ["consolidated*.safetensors"]  # Mistral's own releases


def resolve(path_or_hub_id: str | Path) -> Path:
    """Return the local folder of a checkpoint: a folder as it is, else the Hugging Face hub's copy, fetched if need be.

    Only the description, the tokenizer and one kind of weights are fetched (safetensors where the hub has them).

    Raises:
        InputError: neither a folder nor a hub repository that can be reached (names the nearest local folder).
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{path}: a checkpoint is a folder with config.json, and this is a file")
    try:
        return _fetch(str(path_or_hub_id))
    # The hub client raises errors of its own, of the HTTP library below it, and OSError: all mean "not there".
    except Exception as error:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:160]
        hint = closest(path.name, siblings)
        raise InputError(f"no checkpoint folder '{path_or_hub_id}'{hint}, and the hub gave none ({reason})") from error


def read_config(directory: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        InputError: it is missing, not JSON, not an object, or has no "model_type".
    """
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{directory}: no config.json, so this is not a checkpoint folder")
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise InputError(f'{path}: no "model_type", expected the name of a model family such as "gpt2"')
    return config


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint directory by name, memory-mapped: data is read from disk where it is touched.

    Args:
        files: of safetensors, where they are not the ones of `WEIGHTS`.
    Raises:
        InputError: no weights, a missing shard, a truncated or foreign file, a tensor that the index promises in vain.
    """

    def __init__(self, directory: Path, files: Sequence[Path] | None = None) -> None:
        self.directory = directory
        self._readers: dict[str, Callable[[], Tensor]] = {}
        self._files: dict[str, Path] = {}
        promised: dict[str, Path] = {}
        if files is None:
            entry = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
            if entry is None:
                raise InputError(f"{directory}: no weights, expected one of {', '.join(WEIGHTS)}")
            promised = _read_index(entry) if entry.suffix == ".json" else {}
            files = sorted(set(promised.values())) or [entry]
        for path in files:
            for name, reader in _open(path).items():
                self._readers[name], self._files[name] = reader, path
        for name, path in promised.items():
            if self._files.get(name) != path:
                raise InputError(f"{entry}: the index places tensor '{name}' in {path.name}, which does not hold it")

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def file(self, name: str) -> Path:
        """Return the file that holds a tensor; the directory if none does."""
        return self._files.get(name, self.directory)


class Backbone(Mapping[str, Tensor]):
    """The tensors of a directory without those of the output layer, and without the prefix of the others."""

    def __init__(self, tensors: StoredTensors, prefix: str, left_out: Collection[str]) -> None:
        self._tensors = tensors
        self._names = {name.removeprefix(prefix): name for name in tensors if name not in left_out}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(tensors: Iterable[tuple[str, Tensor]], directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write model.safetensors, or shards of at most `shard_bytes` with model.safetensors.index.json.

    `tensors` is consumed once and no more than one shard of it is held, so it may be a generator of copies.
    """
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        # The number of shards is not known yet: they get their final names below.
        with write_whole(directory / f"shard-{len(shards)}") as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask says; safetensors makes files private
            try:
                save_file(pending, temporary, metadata={"format": "pt"})
            except SafetensorError as error:  # what a full disk looks like from there
                raise OSError(f"{directory}: {error}") from error
            temporary.chmod(mode)
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and sum(held.nbytes for held in pending.values()) + tensor.nbytes > shard_bytes:
            flush()
        pending[name] = tensor.detach().cpu().contiguous()
        total += tensor.nbytes
    flush()

    if len(shards) == 1:
        (directory / "shard-0").rename(directory / "model.safetensors")
        return
    weight_map = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"shard-{index}").rename(directory / file)
        weight_map.update(dict.fromkeys(names, file))
    write_json(directory / WEIGHTS[1], {"metadata": {"total_size": total}, "weight_map": weight_map})


@contextmanager
def replace_checkpoint(directory: Path) -> Iterator[Path]:
    """Yield an empty folder to write a new checkpoint to; its files replace those of `directory` when the block ends.

    Until the block ends nothing in `directory` changes, so an error or a full disk leaves the old checkpoint. Then the
    files are renamed into place, the one that a reader starts from last. If the description (config, tokenizer)
    changes, or shards are overwritten, the old weights are unlinked first: a crash in between leaves a directory
    without weights, which no reader accepts, and never old weights under a new description. One process at a time.

    Raises:
        InputError: `directory` cannot be created or written to.
    """
    staging = directory / ".saving"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)  # left behind by a process that was killed
        staging.mkdir()
    except OSError as error:
        raise InputError(f"{directory}: cannot write a checkpoint here ({error.strerror})") from error
    try:
        yield staging
        _move_into_place(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_into_place(staging: Path, directory: Path) -> None:
    staged = [path.name for path in staging.iterdir()]
    entries = [name for name in staged if name in WEIGHTS]
    shards = [name for name in staged if name.endswith(".safetensors") and name not in WEIGHTS]
    description = [name for name in staged if name not in entries and name not in shards]
    stale = _weight_files(directory) - set(staged)

    if any(_changed(staging / name, directory / name) for name in description) or shards:
        for name in WEIGHTS:
            (directory / name).unlink(missing_ok=True)
        sync_directory(directory)
    for names in ([*description, *shards], entries):
        for name in names:
            (staging / name).replace(directory / name)
        sync_directory(directory)
    for name in stale:
        (directory / name).unlink(missing_ok=True)


def _weight_files(directory: Path) -> set[str]:
    """Name every weight file of a directory: what a reader may start from, and the shards its indices list."""
    present = {name for name in WEIGHTS if (directory / name).is_file()}
    for name in [name for name in present if name.endswith(".json")]:
        try:
            present |= {path.name for path in _read_index(directory / name).values()}
        except InputError:
            continue  # a broken index lists nothing that could be removed
    return present


def _changed(new: Path, old: Path) -> bool:
    return not old.is_file() or new.read_bytes() != old.read_bytes()


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    directory = Path(snapshot_download(hub_id, allow_patterns=_DESCRIPTION_FILES))
    for patterns in (_SAFETENSORS_FILES, _PICKLED_FILES, _NATIVE_FILES):
        snapshot_download(hub_id, allow_patterns=patterns)
        if any(True for pattern in patterns for _ in directory.glob(pattern)):
            break
    return directory


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: not UTF-8, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}, expected JSON") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno} column {error.colno}: not JSON ({error.msg})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _read_index(path: Path) -> dict[str, Path]:
    """Read which shard holds which tensor."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f'{path}: no "weight_map" object, expected tensor names with their files')
    files = {name: path.parent / Path(str(file)).name for name, file in weight_map.items()}
    missing = sorted({file.name for file in files.values() if not file.is_file()})
    if missing:
        raise InputError(f"{path.parent}: {len(missing)} shard(s) missing: {', '.join(missing)}")
    return files


def _open(path: Path) -> dict[str, Callable[[], Tensor]]:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: truncated or not a safetensors file ({error})") from error
        return {name: partial(_mapped, path, name) for name in names}
    content = _unpickle(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: expected a dictionary of tensors")
    return {name: partial(content.__getitem__, name) for name in content}


def _mapped(path: Path, name: str) -> Tensor:
    """Return a tensor in a mapping of its own: with the tensor, the pages that were read of it are given back."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _unpickle(path: Path) -> Any:
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        # Files older than torch 1.6 (OpenAI's own gpt2 among them) are not archives and cannot be memory-mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused, it holds something other than tensors (or is not a torch file)") from error
    except Exception as error:  # a truncated pickle makes its reader fail in many ways
        raise InputError(f"{path}: truncated or not a torch file ({type(error).__name__})") from error
