"""From a file, compressed or not, to decoded text: constant memory, and errors that name the file and the byte."""

import codecs
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard

from stemma.errors import InputError

# Called with the number of bytes newly read from disk; drives the progress bars.
Count = Callable[[int], None]

CHUNK = 1 << 20
# Highly repetitive text unpacks a thousand times larger: a small input chunk bounds what comes out of one call.
COMPRESSED_CHUNK = 1 << 14
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def text_chunks(path: Path, count: Count) -> Iterator[str]:
    """Yield the UTF-8 text of a file in chunks of about 1 MiB; a byte order mark at the start is dropped.

    Line ends are left as they are. Raises InputError naming the byte offset (in the decompressed text, where the
    file is compressed) of the first bytes that are not UTF-8.
    """
    where = " of the decompressed text" if path.suffix in COMPRESSIONS else ""
    return _decoded(byte_chunks(path, count), str(path), where)


def standard_input() -> Iterator[str]:
    """Yield the UTF-8 text of standard input (see `text_chunks`)."""
    return _decoded(iter(lambda: sys.stdin.buffer.read(CHUNK), b""), "standard input", "")


def _decoded(chunks: Iterator[bytes], name: str, where: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0  # of the next chunk; the decoder may still hold the first bytes of a character from the one before
    for chunk in _closed_by_empty(chunks):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise InputError(
                f"{name}: not UTF-8 at byte {offset - pending + error.start}{where} (0x{byte:02x}, {error.reason}); "
                "expected UTF-8 text"
            ) from None
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset += len(chunk)
        if text:
            yield text


def byte_chunks(path: Path, count: Count) -> Iterator[bytes]:
    """Yield the content of a file in chunks, decompressed if its name ends in .gz or .zst."""
    compression = COMPRESSIONS.get(path.suffix)
    if compression is None:
        yield from raw_chunks(path, CHUNK, count)
    else:
        yield from _decompressed(path, compression, count)


def _decompressed(path: Path, compression: str, count: Count) -> Iterator[bytes]:
    """Decompress any number of concatenated gzip members or zstd frames; one that is cut short is an error."""
    decompressor, offset, members = None, 0, 0
    for chunk in raw_chunks(path, COMPRESSED_CHUNK, count):
        rest = chunk
        while rest:
            if decompressor is None:
                if compression == "gzip" and members and not rest.strip(b"\0"):
                    break  # zero bytes after the last member are padding (of tapes and of some web archives)
                decompressor = _decompressor(compression)
            try:
                data = decompressor.decompress(rest)
            except (zlib.error, zstandard.ZstdError) as error:
                raise InputError(
                    f"{path}: not valid {compression} data between bytes {offset + len(chunk) - len(rest)} and "
                    f"{offset + len(chunk)} of the file ({error})"
                ) from None
            if data:
                yield data
            rest = decompressor.unused_data if decompressor.eof else b""
            if decompressor.eof:
                decompressor, members = None, members + 1
        offset += len(chunk)
    if decompressor is not None or offset == 0:
        raise InputError(f"{path}: the {compression} data ends too early, at byte {offset} of the file")


def _decompressor(compression: str) -> "zlib._Decompress | zstandard.ZstdDecompressionObj":
    if compression == "gzip":
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()  # as `zstd --long=31` may have used


def raw_chunks(path: Path, size: int, count: Count) -> Iterator[bytes]:
    """Yield the bytes of a file as they are, `size` at a time."""
    try:
        with open(path, "rb") as file:
            while chunk := file.read(size):
                count(len(chunk))
                yield chunk
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _closed_by_empty(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield from chunks
    yield b""
