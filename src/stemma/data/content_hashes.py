"""What a file contains, as a hash that is remembered while the file's path, size and time of change stay the same."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from stemma.data.byte_streams import CHUNK, Count, raw_chunks
from stemma.errors import InputError
from stemma.files import write_whole

# A file changed this recently (in seconds) may change again without its time of change moving on.
SETTLED = 2.0


def digest(parts: Iterable[str]) -> str:
    """Hash a list of strings (32 hexadecimal digits); lists that differ in any part or division hash differently."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:32]


def stamps(paths: Sequence[Path]) -> list[list[int]]:
    """Size in bytes and time of change in nanoseconds of each file."""
    try:
        return [[status.st_size, status.st_mtime_ns] for status in map(os.stat, paths)]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


def content_hashes(paths: Sequence[Path], cache: Path, count: Count) -> list[str]:
    """SHA-256 of the bytes of each file; unchanged files are looked up in `cache` instead of being read.

    `count` is called with the bytes hashed or found in the cache.
    """
    names = [str(path.resolve()) for path in paths]
    memory = cache / "hashes" / f"{digest(names)}.json"
    try:
        remembered = json.loads(memory.read_text())
    except (OSError, ValueError):
        remembered = {}
    found: dict[str, tuple[list[int], str]] = {}
    changed = False
    for path, name, stamp in zip(paths, names, stamps(paths), strict=True):
        known_stamp, known_hash = remembered.get(name, (None, ""))
        if known_stamp == stamp:
            count(stamp[0])
            found[name] = stamp, known_hash
        else:
            found[name] = stamp, _sha256(path, count)
            changed = True
    if changed:
        now = time.time()
        settled = {name: entry for name, entry in found.items() if now - entry[0][1] / 1e9 > SETTLED}
        # A cache that cannot be written is reported where it matters: for the shards.
        with suppress(OSError), write_whole(memory) as temporary:
            temporary.write_text(json.dumps(settled))
    return [found[name][1] for name in names]


def _sha256(path: Path, count: Count) -> str:
    state = hashlib.sha256()
    for chunk in raw_chunks(path, CHUNK, count):
        state.update(chunk)
    return state.hexdigest()
