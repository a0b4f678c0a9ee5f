"""What kind of file some first bytes belong to, so that a file that is no text is refused by its kind and not line by line."""

from __future__ import annotations

import re
import struct
import zlib
from typing import Literal, NamedTuple

# Enough for every signature, and to tell text from data.
HEAD_BYTES = 1 << 16

# Container: other files are inside it. Encoding: text, but not UTF-8. Data: neither.
Kind = Literal["container", "encoding", "data"]


class Format(NamedTuple):
    """A file format as people call it."""

    name: str
    kind: Kind


_CONTAINERS: tuple[tuple[bytes, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"PK\x07\x08", "a zip archive in parts"),
    (b"MSCF\x00\x00\x00\x00", "a CAB archive"),
    (b"xar!\x00", "a XAR archive"),
    (b"!<arch>\n", "an ar archive or a Debian package"),
    (b"070701", "a cpio archive"),
    (b"070702", "a cpio archive"),
    (b"070707", "a cpio archive"),
    (b"\xc7\x71", "a cpio archive"),
    (b"\x04\x22\x4d\x18", "LZ4 data"),
    (b"\x02\x21\x4c\x18", "LZ4 data (of its legacy format)"),
    (b"\xff\x06\x00\x00sNaPpY", "Snappy data"),
    (b"\xff\x06\x00\x00S2sTwO", "S2 data"),
    (b"LZIP\x01", "lzip data"),
    (b"\x89LZO\x00\r\n\x1a\n", "LZO data"),
    (b"LRZI\x00", "lrzip data"),
    (b"\x1f\x9d", "data of `compress` (.Z)"),
    (b"\x1f\x1e", "data of `pack`"),
    (b"bvx1", "LZFSE data"),
    (b"bvx2", "LZFSE data"),
    (b"bvxn", "LZFSE data"),
    (b"bvx-", "LZFSE data"),
    (b"Salted__", "data that OpenSSL encrypted"),
)
_DATA: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", "a Parquet file"),
    (b"PARE", "an encrypted Parquet file"),
    (b"ARROW1\x00\x00", "an Arrow IPC file"),
    (b"FEA1", "a Feather file"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"SEQ\x06", "a Hadoop sequence file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"GGUF", "a GGUF model"),
    (b"%PDF-", "a PDF document"),
    (b"{\\rtf", "an RTF document"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of older Microsoft Office"),
    (b"\x00\x05\x16\x07", "what macOS keeps of a file's attributes (AppleDouble)"),
    (b"\x00\x05\x16\x00", "an AppleSingle file"),
    (b"bplist0", "a property list of macOS"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"ID3", "an MP3 file"),
    (b"OggS", "an Ogg file"),
    (b"fLaC", "a FLAC file"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM film"),
    (b"\x7fELF", "a program (ELF)"),
    (b"\xcf\xfa\xed\xfe", "a program (Mach-O)"),
    (b"\xca\xfe\xba\xbe", "a program (Mach-O or Java)"),
    (b"\x00asm", "a program (WebAssembly)"),
    (b"\xac\xed\x00\x05", "a serialised Java object"),
)
_BYTE_ORDER_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
# Where the zeros are in eight bytes of text that begins with ASCII; without a mark its decoder has to be told the order.
_ZEROS_OF_ASCII: tuple[tuple[list[bool], str], ...] = (
    ([False, True] * 4, "UTF-16LE"),
    ([True, False] * 4, "UTF-16BE"),
    ([False, True, True, True] * 2, "UTF-32LE"),
    ([True, True, True, False] * 2, "UTF-32BE"),
)
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_CONTROLS = re.compile(rb"[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f]")
# A file is data where this many of its first bytes, and this share of them, are of no text.
_LEAST_CONTROLS = 4
_DATA_SHARE = 0.03
_SAMPLE_BYTES = 4096


def is_plain_text(head: bytes) -> bool:
    """Whether the first bytes of a file (all of it, where they are under `HEAD_BYTES`) are UTF-8 without control characters."""
    if _CONTROLS.search(head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character may be cut where the head ends.
        return len(head) >= HEAD_BYTES and error.start >= len(head) - 3 and error.reason == "unexpected end of data"
    return True


def recognise_format(head: bytes) -> Format | None:
    """What the first bytes of a file say it is; None for text, and for what is not known.

    Plain text is never anything else, though it may begin with `PAR1`, `GIF89a` or `%PDF-`.
    """
    if is_plain_text(head):
        return None
    begin = head[skip_frames(head) :]
    for signature, name in _CONTAINERS:
        # Letters alone may begin a text of another encoding.
        if begin.startswith(signature) and (b"\x00" in head or not is_plain_text(signature)):
            return Format(name, "container")
    if _is_tar(head):
        return Format("a tar archive", "container")
    if re.match(rb"[\x1e-\x27]\xb5\x2f\xfd", head):
        return Format("Zstandard data of a version before 0.8", "container")
    if _is_zlib(head):
        return Format("zlib data", "container")
    for signature, name in _DATA:
        # What follows a signature of letters is no letter.
        if head.startswith(signature) and (signature != b"ORC" or head[3:4] < b" " or head[3:4] > b"~"):
            return Format(name, "data")
    return _recognise_encoding(head) or _recognise_structure(head)


def skip_frames(head: bytes) -> int:
    """Where the data begin behind frames that are to be skipped, which Zstandard and LZ4 have in common."""
    at = 0
    while _SKIPPABLE.match(head, at):
        at += 8 + int.from_bytes(head[at + 4 : at + 8], "little")
    return at


def _recognise_encoding(head: bytes) -> Format | None:
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return Format(f"{name} text", "encoding")
    zeros = [byte == 0 for byte in head[:8]]
    for pattern, name in _ZEROS_OF_ASCII:
        if zeros == pattern:
            return Format(f"{name} text without a byte order mark", "encoding")
    return None


def _recognise_structure(head: bytes) -> Format | None:
    if head[:4] == b"\xff\xff\xff\xff" and 0 < int.from_bytes(head[4:8], "little") < 1 << 24:
        return Format("an Arrow IPC stream", "data")
    if head[8:9] == b"{" and head[5:8] == b"\x00\x00\x00":
        return Format("a safetensors file", "data")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Format("a Python pickle", "data")
    if head[:4] == b"RIFF" and head[8:12] in (b"WAVE", b"WEBP", b"AVI "):
        return Format(f"a {head[8:12].decode().strip()} file", "data")
    if head[4:8] == b"ftyp":
        return Format("an MP4 film or a HEIF image", "data")
    if not head.strip(b"\x00"):
        return Format("nothing but zero bytes", "data")
    if head[:1] == b"\x1e" and head[1:2] in (b"{", b"["):
        return Format("a JSON text sequence (RFC 7464)", "data")
    sample = head[:_SAMPLE_BYTES]
    num_controls = len(_CONTROLS.findall(sample))
    if num_controls < max(_LEAST_CONTROLS, _DATA_SHARE * len(sample)):
        return None
    is_utf8 = is_plain_text(_CONTROLS.sub(b" ", head))
    return None if is_utf8 else Format("data of a kind that is not known", "data")


def _is_tar(head: bytes) -> bool:
    """By the checksum of its first header, which tars of every age have: the sum of 512 bytes, its own field as spaces."""
    if len(head) < 512:
        return False
    stated = head[148:156].strip(b" \x00")
    if not re.fullmatch(rb"[0-7]{2,7}", stated):
        return False
    return int(stated, 8) == sum(head[:148]) + 8 * 0x20 + sum(head[156:512])


def _is_zlib(head: bytes) -> bool:
    if len(head) < 8 or head[0] != 0x78 or struct.unpack(">H", head[:2])[0] % 31:
        return False
    try:
        return bool(zlib.decompressobj().decompress(head, 1 << 16))
    except zlib.error:
        return False
