"""HDF5 files: arrays by name, whole on disk or not there."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stemma.errors import InputError
from stemma.files import write_whole


def require_h5py() -> Any:
    """Return h5py.

    Raises:
        InputError: it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise InputError("HDF5 files need h5py: pip install 'stemma-lm[elmo]'") from None
    return h5py


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file, by their names with those of the groups before them: "group/array".

    Raises:
        InputError: truncated or no HDF5 file, or h5py not installed.
    """
    h5py = require_h5py()
    arrays: dict[str, np.ndarray] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[...]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(take)
    except OSError as error:
        raise InputError(f"{path}: truncated or not an HDF5 file ({error})") from error
    return arrays


def write_hdf5(path: Path, items: Iterable[tuple[str, np.ndarray | str]]) -> None:
    """Write arrays, one after the other, under their names; a text as an array of it alone.

    Raises:
        InputError: h5py not installed.
        OSError: the disk is full, or the folder cannot be written.
    """
    h5py = require_h5py()
    with write_whole(path) as temporary, h5py.File(temporary, "w") as file:
        for name, value in items:
            if isinstance(value, str):
                file.create_dataset(name, data=[value], dtype=h5py.string_dtype())
            else:
                file.create_dataset(name, data=value)
