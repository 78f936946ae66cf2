import hashlib
import os
import time

import pytest

from stemma.data import content_hashes as module
from stemma.data.content_hashes import content_hashes, digest


def age(path, seconds: float = 60.0) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_unchanged_files_are_not_read_again(tmp_path, cache, monkeypatch):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(path.name)
        age(path)
    expected = [hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()]
    counted: list[int] = []
    assert content_hashes(paths, cache, counted.append) == expected
    read: list[str] = []
    monkeypatch.setattr(module, "_sha256", lambda path, count: read.append(path.name) or "fresh")
    assert content_hashes(paths, cache, counted.append) == expected
    assert read == [] and sum(counted) == 4
    paths[1].write_text("changed")
    assert content_hashes(paths, cache, counted.append) == [expected[0], "fresh"]


def test_a_file_just_written_is_not_trusted_to_stay(tmp_path, cache):
    """Within the clock's grain it can change without its time of change moving on."""
    path = tmp_path / "a"
    path.write_text("old")
    stamp = path.stat().st_mtime_ns
    first = content_hashes([path], cache, lambda read: None)
    path.write_text("new")
    os.utime(path, ns=(stamp, stamp))
    assert content_hashes([path], cache, lambda read: None) != first


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "cache").write_text("not a folder")
    age(tmp_path / "file")
    expected = [hashlib.sha256(b"x").hexdigest()]
    assert content_hashes([tmp_path / "file"], tmp_path / "cache", lambda read: None) == expected


@pytest.mark.parametrize("other", [["a", "b", ""], ["ab"], ["b", "a"], ["a"], ['a", "b']])
def test_digest_tells_lists_apart(other):
    assert digest(["a", "b"]) != digest(other)
