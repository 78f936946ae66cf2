"""Metrics on disk: one JSON object a line, always; TensorBoard and Weights & Biases where asked for."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from stemma.errors import InputError

METRICS = "metrics.jsonl"


class MetricsLog:
    """Writes `metrics.jsonl`, one line per step that has anything to tell.

    Args:
        path: the file. step: what lies behind this step (of a run that was killed) is cut off.
        tensorboard: folder for TensorBoard's event files, or None. wandb: project, or None.
        run: name of the run there. settings: the recipe, shown there.
    Raises:
        InputError: an extra that is asked for is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        step: int = 0,
        tensorboard: Path | None = None,
        wandb: str | None = None,
        run: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        cut_after(path, step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self._tensorboard = None if tensorboard is None else _tensorboard_writer(tensorboard, step)
        self._wandb = None if wandb is None else _wandb_run(wandb, run, path.parent, settings or {})

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line: {"step": step, ...}."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(f"{self._file.name}: {error.strerror or error}") from error
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def sync(self) -> None:
        """Flush what was written to disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and the writers."""
        with suppress(OSError):  # what could not be written has been told
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def cut_after(path: Path, step: int) -> None:
    """Cut `path` off behind the last line of a step up to `step`, and at a line that was only half written."""
    if not path.exists():
        return
    end = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            end += len(line)
    if end < path.stat().st_size:
        os.truncate(path, end)


def _tensorboard_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "output.tensorboard: TensorBoard is not installed; pip install 'stemma-lm[tensorboard]'"
        ) from error
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


def _wandb_run(project: str, name: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError("output.wandb: Weights & Biases is not installed; pip install 'stemma-lm[wandb]'") from error
    # The folder's name is the identity of the run, so that a resumed run goes on in the same curves.
    return wandb.init(
        project=project, name=name, id=name.replace("/", "-"), resume="allow", dir=str(folder), config=dict(settings)
    )
