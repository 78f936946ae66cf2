"""Checkpoints of a running training: exact, complete or absent, and nothing pickled.

    training_state/step-00001000/tensors.safetensors   weights, optimizer moments, averages, carried states
    training_state/step-00001000/state.json            step, counters, fingerprints, the recipe, the environment

There is no random state in them: the order of the data, the randomness of each example and the dropout of each update
are functions of the seed, the update's number and the worker's rank.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.files import write_whole
from stemma.training.distributed import full_tensor, like

VERSION = 1
TENSORS, RECORD = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class SavedState:
    """A complete checkpoint on disk."""

    path: Path
    record: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.record["step"])


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Path:
    """Write `folder`/step-<step>, flushed to disk and only then given its name.

    Raises:
        OSError: the disk is full, or the folder cannot be written; nothing that was there before has changed.
    """
    path = folder / f"step-{step:08d}"
    with write_whole(path) as temporary:
        temporary.mkdir()
        try:
            save_file(dict(tensors), temporary / TENSORS)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
        size = (temporary / TENSORS).stat().st_size
        content = {"version": VERSION, "step": step, "bytes": size, **record}
        (temporary / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def complete_states(folder: Path) -> list[SavedState]:
    """Return the complete checkpoints in `folder`, the newest first."""
    found = (_read(path) for path in sorted(folder.glob("step-*"), reverse=True))
    return [state for state in found if state is not None]


def newest_state(folder: Path) -> tuple[SavedState | None, list[Path]]:
    """Return the newest complete checkpoint in `folder`, and the newer ones that had to be passed over as damaged."""
    damaged: list[Path] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        state = _read(path)
        if state is not None:
            return state, damaged
        damaged.append(path)
    return None, damaged


def remove_state(path: Path) -> None:
    """Delete a checkpoint so that a crash in the middle leaves no half of it under its name."""
    doomed = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def prune_states(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in sorted(folder.glob("step-*"))[:-keep]:
        remove_state(path)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed process left in `folder`."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def require_space(folder: Path, needed: int) -> None:
    """Check that `folder` can be written and has room for `needed` bytes.

    Raises:
        InputError: it cannot, or has not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_whole(folder / ".probe") as temporary:
            temporary.write_bytes(bytes(4096))
        (folder / ".probe").unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}), expected room for checkpoints") from error
    if free < needed:
        size, unit = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
        raise InputError(
            f"{folder}: {free / size:.2f} {unit} free, but the checkpoints need {needed / size:.2f} {unit}"
        )


def training_tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: Mapping[str, Tensor],
    carried: Mapping[str, Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that a resumed run needs, by name; of a sharded model the whole tensor, on every worker.

    Tied weights come once. The tensors are those in use, not copies, unless they had to be gathered.
    """
    for name, value in _model_tensors(model):
        yield f"model.{name}", full_tensor(value)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"optimizer.{key}.{name}", full_tensor(value)
    for name, value in averages.items():
        yield f"average.{name}", full_tensor(value)
    for name, value in carried.items():
        yield f"carried.{name}", value


@torch.no_grad()
def restore_tensors(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: Mapping[str, Tensor],
    carried: dict[str, Tensor],
) -> None:
    """Put the tensors of a checkpoint back where `training_tensors` found them.

    Raises:
        InputError: a tensor is missing or has another shape.
    """
    with open_tensors(path) as stored:
        for name, value in _model_tensors(model):
            value.copy_(like(value, stored(f"model.{name}", value)))
        for name, value in averages.items():
            value.copy_(like(value, stored(f"average.{name}", value)))
        for name, parameter in model.named_parameters():
            if name in stored.moments:
                optimizer.state[parameter] = {
                    key: _moment(stored(f"optimizer.{key}.{name}"), parameter) for key in stored.moments[name]
                }
        device = next(model.parameters()).device
        for name in stored.carried:
            carried[name] = stored(f"carried.{name}").to(device)


class StoredTensors:
    """The tensors of an open checkpoint: call with a name to read one."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file, self._names = path, file, set(file.keys())
        self.moments: dict[str, list[str]] = {}  # parameter -> what the optimizer keeps for it
        self.carried = [name.removeprefix("carried.") for name in self._names if name.startswith("carried.")]
        for name in self._names:
            if name.startswith("optimizer."):
                _, key, parameter = name.split(".", 2)
                self.moments.setdefault(parameter, []).append(key)

    def __call__(self, name: str, expected: Tensor | None = None) -> Tensor:
        if name not in self._names:
            raise InputError(f"{self.path}: no tensor '{name}', so it belongs to another model")
        tensor: Tensor = self._file.get_tensor(name)
        if expected is not None and tensor.shape != expected.shape:
            raise InputError(f"{self.path}: '{name}' is {list(tensor.shape)}, the model's {list(expected.shape)}")
        return tensor


@contextmanager
def open_tensors(path: Path) -> Iterator[StoredTensors]:
    """Open the tensors of a checkpoint; they are read one at a time."""
    with safe_open(path / TENSORS, framework="pt") as file:
        yield StoredTensors(path, file)


def _model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    yield from ((name, value) for name, value in model.state_dict().items() if name not in parameters)


def _moment(stored: Tensor, parameter: Tensor) -> Tensor:
    return like(parameter, stored) if stored.shape == parameter.shape else stored.to(parameter.device)


def _read(path: Path) -> SavedState | None:
    """Return the checkpoint at `path` if all of it is there."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if record["version"] != VERSION or (path / TENSORS).stat().st_size != record["bytes"]:
            return None
        with safe_open(path / TENSORS, framework="pt"):
            return SavedState(path, record)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
