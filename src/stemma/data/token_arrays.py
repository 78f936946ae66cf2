"""Long arrays in several files that read as one, without ever being in memory as a whole."""

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class FileArray:
    """The numbers of several raw binary files, end to end. Memory-mapped; only what is read is loaded.

    Pickles as its file names, so that a copy in a worker process maps the same files.
    """

    def __init__(self, paths: Sequence[Path], dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        sizes = [(path, path.stat().st_size // self.dtype.itemsize) for path in paths]
        self._paths = [path for path, size in sizes if size]  # an empty file cannot be mapped
        self._starts = np.cumsum([0] + [size for _, size in sizes if size]).tolist()
        self._maps: list[np.ndarray | None] = [None] * len(self._paths)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return numbers `start` to `stop` as a one-dimensional array of the files' dtype (read-only where mapped)."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"[{start}, {stop}) of an array of {len(self)}")
        parts = []
        shard = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            end = min(stop, self._starts[shard + 1])
            parts.append(self._map(shard)[start - self._starts[shard] : end - self._starts[shard]])
            start, shard = end, shard + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise IndexError("only slices with step 1")
            return self.read(start, max(start, stop))
        index = key + len(self) if key < 0 else key
        return self.read(index, index + 1)[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(0, len(self)), dtype=dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileArray, (self._paths, self.dtype.str)

    def _map(self, shard: int) -> np.ndarray:
        found = self._maps[shard]
        if found is None:
            # As a plain array: slicing a np.memmap costs ten times as much.
            found = np.asarray(np.memmap(self._paths[shard], dtype=self.dtype, mode="r"))
            self._maps[shard] = found
        return found
