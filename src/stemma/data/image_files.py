"""Images packed into files: MNIST's idx, CIFAR's batches."""

import gzip
import io
import pickle
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from stemma.errors import InputError

IDX_IMAGES = re.compile(r"(.*)images[-.]idx3-ubyte(\.gz)?")
_CIFAR = re.compile(r"(data_batch(_\d+)?|test_batch|train|test)(\.bin)?")
_CIFAR_PIXELS = 3 * 32 * 32


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an idx file, plain or gzip, as uint8 of its own shape.

    Raises:
        InputError: it is none of unsigned bytes, or shorter than it says.
    """
    content = _content(path)
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"{path}: not an idx file of unsigned bytes")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    start = 4 + 4 * content[3]
    if len(content) - start != int(np.prod(shape)):
        raise InputError(f"{path}: {len(content) - start} bytes, and it says {' x '.join(map(str, shape))}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_idx_pair(images: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images [count, height, width] and the labels of the file beside them.

    Raises:
        InputError: no such file, or not as many labels as images.
    """
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    pixels, numbers = read_idx(images), read_idx(labels)
    if len(pixels) != len(numbers) or pixels.ndim != 3 or numbers.ndim != 1:
        raise InputError(f"{images}: {list(pixels.shape)}, and {labels.name} {list(numbers.shape)}")
    return pixels, numbers.astype(np.int64)


def is_cifar(path: Path) -> bool:
    """Return whether a file is named like a batch of CIFAR-10 or CIFAR-100, in Python's or the binary version."""
    return bool(_CIFAR.fullmatch(path.name)) and path.is_file()


def read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [count, 32, 32, 3] and labels of a batch; of CIFAR-100 the fine ones.

    Raises:
        InputError: it is no such batch.
    """
    if path.suffix == ".bin":
        content = np.frombuffer(_content(path), np.uint8)
        # CIFAR-100 has the coarse label before the fine one.
        before = 2 if path.stem in ("train", "test") else 1
        if len(content) % (_CIFAR_PIXELS + before):
            raise InputError(f"{path}: {len(content)} bytes, expected a multiple of {_CIFAR_PIXELS + before}")
        rows = content.reshape(-1, _CIFAR_PIXELS + before)
        pixels, labels = rows[:, before:], rows[:, before - 1]
    else:
        batch = _unpickled(path)
        labels = np.asarray(batch.get("fine_labels", batch.get("labels")))
        pixels = batch["data"]
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64)


def cifar_names(directory: Path) -> tuple[str, ...] | None:
    """Return the names of the classes that lie beside the batches, if they do."""
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        if (directory / name).is_file():
            return tuple((directory / name).read_text(encoding="utf-8").split())
    for name, key in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if (directory / name).is_file():
            return tuple(_unpickled(directory / name)[key])
    return None


class _Arrays(pickle.Unpickler):
    """Unpickles lists, texts and NumPy's arrays, and nothing that could do anything."""

    def find_class(self, module: str, name: str) -> Any:
        from numpy._core import multiarray

        if (module.split(".")[0], name) == ("numpy", "_reconstruct"):
            return multiarray._reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        found = _Arrays(io.BytesIO(_content(path)), encoding="latin1").load()
        if isinstance(found, dict) and ("data" in found or any("label_names" in name for name in found)):
            return found
        raise ValueError("it has no data")
    except Exception as error:  # a foreign pickle makes its reader fail in many ways
        raise InputError(f"{path}: not a batch of CIFAR ({error})") from error


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
