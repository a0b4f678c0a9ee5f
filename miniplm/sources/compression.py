"""Compressed files: their first bytes tell how, not their names, and they are read to the end of their last stream."""

from __future__ import annotations

import bz2
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import zstandard

from miniplm.errors import NotOneFileError
from miniplm.sources.signatures import is_plain_text, skip_frames

Compression = Literal["gzip", "zstd", "bzip2", "xz", "lzma", "zip"]

_BLOCK_BYTES = 1 << 20
# Zstandard gives out all that a block holds at once, so its blocks are small.
_ZSTD_BLOCK_BYTES = 1 << 16

_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
# Of the record at the end of a zip archive, without its comment.
_ZIP_END_BYTES = 22
_ZSTD_FRAME = b"\x28\xb5\x2f\xfd"
_LZ4_FRAME = b"\x04\x22\x4d\x18"

# By ending: the first bytes that a file so called should have, empty where there are none.
_ENDINGS: dict[str, tuple[str, bytes]] = {
    ".gz": ("gzip", b"\x1f\x8b\x08"),
    ".gzip": ("gzip", b"\x1f\x8b\x08"),
    ".bgz": ("gzip", b"\x1f\x8b\x08"),
    ".zst": ("zstd", _ZSTD_FRAME),
    ".zstd": ("zstd", _ZSTD_FRAME),
    ".bz2": ("bzip2", b"BZh"),
    ".bzip2": ("bzip2", b"BZh"),
    ".xz": ("xz", b"\xfd7zXZ\x00"),
    ".lzma": ("lzma", b"\x5d\x00\x00"),
    ".zip": ("zip", b"PK\x03\x04"),
    ".7z": ("7z", b"7z\xbc\xaf\x27\x1c"),
    ".lz4": ("lz4", _LZ4_FRAME),
    ".lz": ("lzip", b"LZIP"),
    ".br": ("brotli", b""),
    ".sz": ("snappy", b""),
    ".snappy": ("snappy", b""),
    ".lzo": ("lzo", b""),
    ".z": ("compress", b"\x1f\x9d"),
}


def recognise_compression(head: bytes) -> Compression | None:
    """How a file that begins with `head` is compressed; None where it is not, or in a way that is not read."""
    if is_plain_text(head):
        return None
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    if _BZIP2.match(head):
        return "bzip2"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if _is_zstd(head):
        return "zstd"
    return "lzma" if _is_lzma(head) else None


def named_compression(path: str) -> tuple[str, bytes] | None:
    """The compression that a file's ending promises, and its first bytes."""
    name = path.rsplit("/", 1)[-1].lower()
    return next((promised for ending, promised in _ENDINGS.items() if name.endswith(ending)), None)


def decompress(raw: Any, compression: Compression) -> Iterator[bytes]:
    """The content of all streams of a file that was opened at its start, in blocks.

    Zero bytes may fill the space behind a stream. Raises `EOFError` where the file ends in the middle of one, and what
    its library raises where something else is there.
    """
    if compression == "zip":
        yield from _read_zip(raw)
        return
    stream: Any = None
    num_streams = 0
    for block in iter(lambda: raw.read(_ZSTD_BLOCK_BYTES if compression == "zstd" else _BLOCK_BYTES), b""):
        while block:
            if stream is None:
                block = block.lstrip(b"\x00") if num_streams else block
                if not block:
                    break
                stream, num_streams = _STREAMS[compression](), num_streams + 1
            yield from [stream.decompress(block)] if compression == "zstd" else _decompress_block(stream, block)
            block, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
    if stream is not None:
        # The libraries themselves take the end of the file for the end of the data.
        raise EOFError("the last stream has no end")


# The largest zstd window there is: archives are often made with `--long`. It costs what a file's own header asks for, up to 2 GiB.
_STREAMS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE),
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
}


def _decompress_block(stream: Any, block: bytes) -> Iterator[bytes]:
    """What a block gives, a bounded piece at a time: a few bytes may hold gigabytes of one letter."""
    while True:
        piece = stream.decompress(block, _BLOCK_BYTES)
        yield piece
        # What a stream has not taken yet zlib gives back; the others keep it and say that they need no more.
        block = getattr(stream, "unconsumed_tail", b"")
        if stream.eof or (not block and getattr(stream, "needs_input", len(piece) < _BLOCK_BYTES)):
            return


def _read_zip(raw: Any) -> Iterator[bytes]:
    with zipfile.ZipFile(raw) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise NotOneFileError(f"a zip archive of {len(members)} files; only one of a single file is read as it is")
        if members[0].flag_bits & 1:
            raise NotOneFileError("a zip archive that is locked by a password")
        _refuse_what_lies_around(archive, raw)
        with archive.open(members[0]) as file:
            yield from iter(lambda: file.read(_BLOCK_BYTES), b"")


def _refuse_what_lies_around(archive: zipfile.ZipFile, raw: Any) -> None:
    """Refuses bytes before the first file and behind the archive, as joined archives have, of which only the last would be read; zeros behind it are none."""
    before = min(member.header_offset for member in archive.infolist())
    raw.seek(archive.start_dir)
    directory = raw.read()
    end = directory.rfind(b"PK\x05\x06") + _ZIP_END_BYTES + len(archive.comment)
    behind = len(directory[end:].rstrip(b"\x00"))
    if before or behind:
        where = f"{before:,} bytes before its first file" if before else f"{behind:,} bytes behind its end"
        raise NotOneFileError(f"a zip archive with {where}, as joined archives have")


def _is_zstd(head: bytes) -> bool:
    at = skip_frames(head)
    return head.startswith(_ZSTD_FRAME, at) or at >= len(head) > 0


def _is_lzma(head: bytes) -> bool:
    """The header of `.lzma`: properties as every program writes them, a dictionary of 2^n or 3 * 2^n bytes, a likely size."""
    if len(head) < 14 or head[0] != 0x5D or head[13] != 0:
        return False
    dictionary, size = int.from_bytes(head[1:5], "little"), head[5:13]
    odd = dictionary >> ((dictionary & -dictionary).bit_length() - 1) if dictionary >= 4096 else 0
    return odd in (1, 3) and (size == b"\xff" * 8 or int.from_bytes(size, "little") < 1 << 38)
