import gzip
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemma.data import byte_streams
from stemma.data.byte_streams import text_chunks
from stemma.errors import InputError

TEXT = "first line\nsecond: ü, 漢, 🙂\r\nthird" * 50


def nothing(read: int) -> None:
    pass


def read(path: Path) -> str:
    return "".join(text_chunks(path, nothing))


def compress(suffix: str, data: bytes) -> bytes:
    return {"": lambda: data, ".gz": lambda: gzip.compress(data), ".zst": lambda: zstandard.compress(data)}[suffix]()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_text_comes_out_as_it_went_in(tmp_path, monkeypatch, suffix, chunk):
    monkeypatch.setattr(byte_streams, "CHUNK", chunk)
    monkeypatch.setattr(byte_streams, "COMPRESSED_CHUNK", chunk)
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(compress(suffix, TEXT.encode()))
    assert read(path) == TEXT


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_concatenated_members_read_as_one(tmp_path, suffix):
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(compress(suffix, b"one ") + compress(suffix, b"two"))
    assert read(path) == "one two"


def test_zero_padding_after_gzip_is_ignored(tmp_path):
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(b"one") + bytes(512))
    assert read(path) == "one"


def test_byte_order_mark_is_dropped_at_the_start_only(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffa\ufeffb".encode())
    assert read(path) == "a\ufeffb"


def test_counts_the_bytes_read_from_disk(tmp_path):
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    counted: list[int] = []
    list(text_chunks(path, counted.append))
    assert sum(counted) == path.stat().st_size


@given(text=st.text(max_size=60), position=st.integers(0, 60), chunk=st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_bad_utf8_is_named_by_its_byte_offset(tmp_path, text, position, chunk):
    before = text[:position].encode()
    path = tmp_path / "bad.txt"
    path.write_bytes(before + b"\xff" + text[position:].encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_streams, "CHUNK", chunk)
        with pytest.raises(InputError, match=rf"bad\.txt: not UTF-8 at byte {len(before)} \(0xff"):
            read(path)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 64])
def test_character_cut_off_at_the_end_is_named_by_its_first_byte(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(byte_streams, "CHUNK", chunk)
    path = tmp_path / "cut.txt"
    path.write_bytes("abc漢".encode()[:-1])
    with pytest.raises(InputError, match=r"cut\.txt: not UTF-8 at byte 3 \(0xe6"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_bad_utf8_in_a_compressed_file(tmp_path, suffix):
    path = tmp_path / f"bad.txt{suffix}"
    path.write_bytes(compress(suffix, b"abcde\xff"))
    with pytest.raises(InputError, match="not UTF-8 at byte 5 of the decompressed text"):
        read(path)


@pytest.mark.parametrize("suffix,name", [(".gz", "gzip"), (".zst", "zstd")])
def test_truncation_anywhere_is_found(tmp_path, suffix, name):
    whole = compress(suffix, TEXT.encode())
    path = tmp_path / f"short.txt{suffix}"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=f"short.*the {name} data ends too early, at byte {size} of the file"):
            read(path)


@pytest.mark.parametrize("suffix,name", [(".gz", "gzip"), (".zst", "zstd")])
def test_corruption_is_found_and_placed(tmp_path, monkeypatch, suffix, name):
    monkeypatch.setattr(byte_streams, "COMPRESSED_CHUNK", 16)
    whole = compress(suffix, b"first member") + b"this is not compressed data"
    path = tmp_path / f"corrupt.txt{suffix}"
    path.write_bytes(whole)
    first = len(compress(suffix, b"first member"))
    with pytest.raises(InputError, match=f"corrupt.*not valid {name} data between bytes") as error:
        read(path)
    low, high = (int(word) for word in str(error.value).split() if word.isdigit())
    assert low <= first + 4 and first <= high <= first + 32


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)
