"""Writing files so that a reader, or a crash, never meets half of one."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; rename it over `path` when the block ends without error.

    The content is flushed to disk before the rename and the folder after it, so that a crash at any moment leaves
    either the old or the new content. A folder may be written the same way if nothing stands at `path` yet.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # of a full disk the system does not say where
        raise


def sync_directory(path: Path) -> None:
    """Flush a folder's entries (a rename inside it) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_directory() -> Path:
    """Where tokenised corpora are kept: `$STEMMA_CACHE`, or `~/.cache/stemma`."""
    return Path(os.environ.get("STEMMA_CACHE") or Path.home() / ".cache" / "stemma")


def _flush(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _flush(child)
        sync_directory(path)
    else:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
