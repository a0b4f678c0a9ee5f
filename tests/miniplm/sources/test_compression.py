"""Files are what their first bytes say: every compression under every name, archives and data refused by name, text never."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import os
import pickle
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import zstandard

from miniplm.errors import DamagedSourceError, SourceError
from miniplm.sources.blocks import read_blocks
from miniplm.sources.documents import Document, Rejection
from miniplm.sources.files import find_source_files
from miniplm.sources.signatures import HEAD_BYTES, is_plain_text, recognise_format
from tests.miniplm.source_fixtures import make_source, read_source

LINES = b"".join(b'{"text": "document %d"}\n' % index for index in range(40))
SKIPPABLE = (0x184D2A53).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"any."


def make_zip(*members: tuple[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return target.getvalue()


def make_tar(*members: tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return target.getvalue()


READ: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "zstd": zstandard.ZstdCompressor().compress,
    "zip": lambda content: make_zip(("b.jsonl", content)),
}


def read_texts(path: Path, **settings: Any) -> list[str]:
    found = read_source(make_source(path, **settings))
    assert all(isinstance(item, Document) for item in found)
    return [item.text for item in found if isinstance(item, Document)]


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("name", ["b.jsonl", "b.jsonl.gz", "b.zstd", "b.xz", "b"])
def test_a_compressed_file_is_read_whatever_it_is_called(tmp_path: Path, kind: str, name: str):
    (tmp_path / name).write_bytes(READ[kind](LINES))
    assert read_texts(tmp_path / name) == [f"document {index}" for index in range(40)]


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_all_streams_of_a_file_are_read_with_zero_bytes_behind_them(tmp_path: Path, kind: str):
    compress = READ[kind]
    stored = compress(b"one") + bytes(8) + compress(b"two") + compress(b"") + compress(b"three") + bytes(1000)
    if kind == "zstd":
        stored = SKIPPABLE + stored[: len(stored) - 1000] + SKIPPABLE
    (tmp_path / "x").write_bytes(stored)
    (file,) = find_source_files(make_source(tmp_path / "x"))
    told: list[int] = []
    assert b"".join(read_blocks(file, told.append)) == b"onetwothree"
    assert sum(told) == len(stored)


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_cut_or_spoilt_file_is_an_error_whatever_it_is_called(tmp_path: Path, kind: str, share: float):
    stored = READ[kind](os.urandom(100_000))
    for content in (stored[: int(len(stored) * share)], stored + READ[kind](b"more")[:-2], stored + b"no such data"):
        (tmp_path / "x").write_bytes(content)
        (file,) = find_source_files(make_source(tmp_path / "x"))
        if kind in ("zip", "lzma") and len(content) > len(stored):
            continue  # what lies around a zip is told as such; of two .lzma the second has no sign
        with pytest.raises(DamagedSourceError, match=r"/x is (truncated|damaged or no \w+ file).*copy it again"):
            list(read_blocks(file, lambda num_bytes: None))


def test_a_failed_reading_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100_000:
                raise TimeoutError("the store does not answer")
            return super().read(size)

    for name, content, settings in (
        ("x.gz", gzip.compress(base64.b64encode(os.urandom(3_000_000))), {}),
        ("x.parquet", _make_parquet([f"some text {index}" for index in range(200_000)]), {"format": "parquet"}),
    ):
        (tmp_path / name).write_bytes(content)
        monkeypatch.setattr("miniplm.sources.files.open_stream", lambda *_, content=content: Failing(content))
        with pytest.raises(TimeoutError, match="does not answer"):
            read_source(make_source(tmp_path / name, **settings))


def test_a_file_of_one_letter_is_read_in_bounded_blocks(tmp_path: Path):
    for kind in ("gzip", "bzip2", "xz"):
        (tmp_path / kind).write_bytes(READ[kind](b"a" * 12_000_000))
        (file,) = find_source_files(make_source(tmp_path / kind))
        sizes = [len(block) for block in read_blocks(file, lambda num_bytes: None)]
        assert (sum(sizes), max(sizes)) == (12_000_000, 1 << 20)


def _make_parquet(texts: list[str]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), target)
    return target.getvalue()


def _make_arrow(kind: Any) -> bytes:
    target = io.BytesIO()
    table = pa.table({"text": ["a", "b"]})
    with kind(target, table.schema) as writer:
        writer.write_table(table)
    return target.getvalue()


def _make_sqlite() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE a (b)")
        return connection.serialize()


def _make_npy() -> bytes:
    target = io.BytesIO()
    np.save(target, np.zeros(100))
    return target.getvalue()


def _make_orc() -> bytes:
    target = io.BytesIO()
    pyarrow.orc.write_table(pa.table({"text": ["a", "b"]}), target)
    return target.getvalue()


CONTAINERS = {
    "a tar archive": make_tar(("a.jsonl", LINES), ("b.jsonl", LINES)),
    "tar archive": make_tar(("a.jsonl", LINES), form=tarfile.USTAR_FORMAT),
    "a zip archive of 2 files": make_zip(("a.jsonl", LINES), ("__MACOSX/._a.jsonl", b"\x00\x05\x16\x07")),
    "a zip archive of 0 files": make_zip(),
    "a zip archive with [0-9]+ bytes before its first file": make_zip(("a.jsonl", LINES)) + make_zip(("b.jsonl", LINES)),
    "a zip archive with 12 bytes behind its end": make_zip(("a.jsonl", LINES)) + b"no such data",
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(range(200)),
    "a RAR archive": b"Rar!\x1a\x07\x01\x00" + bytes(range(200)),
    "LZ4 data": b"\x04\x22\x4d\x18\x64\x40\xa7" + bytes(range(200)),
    "LZ4": b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab\x04\x22\x4d\x18\x64\x40\xa7" + bytes(range(200)),
    "Snappy data": b"\xff\x06\x00\x00sNaPpY\x01" + bytes(range(200)),
    "lzip data": b"LZIP\x01\x0c" + bytes(range(200)),
    "zlib data": zlib.compress(LINES),
    "data of `compress`": b"\x1f\x9d\x90" + bytes(range(200)),
    "tar archive inside its gzip data": gzip.compress(make_tar(("a.jsonl", LINES))),
    "gzip data inside its zstd data": zstandard.ZstdCompressor().compress(gzip.compress(LINES)),
    "7z archive inside its zip data": make_zip(("a.7z", b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(range(200)))),
}
DATA = {
    "a Parquet file": _make_parquet(["a", "b"]),
    "an Arrow IPC file": _make_arrow(pa.ipc.new_file),
    "an Arrow IPC stream": _make_arrow(pa.ipc.new_stream),
    "an ORC file": _make_orc(),
    "a NumPy array": _make_npy(),
    "an SQLite database": _make_sqlite(),
    "a Python pickle": pickle.dumps([{"text": "a"}]),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "a PNG image": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)),
    "a JPEG image": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256)),
    "a PDF document": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
    "AppleDouble": bytes.fromhex("00051607000200004d6163204f5320582020202020202020000200000009") + bytes(200),
    "nothing but zero bytes": bytes(5000),
    "a safetensors file": (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(14),
    "data of a kind that is not known": bytes(range(256)) * 40,
}
ENCODINGS = {f"{name} text": LINES.decode().encode(name) for name in ("UTF-16", "UTF-32")} | {
    "UTF-16BE text without": LINES.decode().encode("utf-16-be"),
    "UTF-32LE text without": LINES.decode().encode("utf-32-le"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_archives_and_other_compressions_are_refused_by_name_in_every_text_format(tmp_path: Path, name: str):
    (tmp_path / "b.jsonl").write_bytes(CONTAINERS[name])
    for settings in ({}, {"format": "text"}):
        with pytest.raises(SourceError, match=rf"b\.jsonl (is|holds) .*{name}.*unpack it"):
            read_source(make_source(tmp_path / "b.jsonl", **settings))


@pytest.mark.parametrize("name", [*DATA, *ENCODINGS])
def test_what_is_no_json_lines_is_refused_by_name_and_is_one_rejection_among_text_files(tmp_path: Path, name: str):
    content = (DATA | ENCODINGS)[name]
    for stored in (content, gzip.compress(content)):
        (tmp_path / "b.jsonl").write_bytes(stored)
        with pytest.raises(SourceError, match=rf"b\.jsonl holds .*{name}.*, not JSON Lines"):
            read_source(make_source(tmp_path / "b.jsonl"))
        (rejection,) = read_source(make_source(tmp_path / "b.jsonl", format="text"))
        assert isinstance(rejection, Rejection)
        assert rejection.reason in ("invalid_utf8", "not_text")
        assert name in rejection.message


def test_what_is_no_parquet_is_refused_by_name(tmp_path: Path):
    for content, named in (
        (LINES, "it holds JSON Lines; set `format: jsonl`"),
        (b"text\n1\n", "it holds text"),
        (gzip.compress(DATA["a Parquet file"]), "it holds gzip data; Parquet is compressed inside"),
        (DATA["an Arrow IPC file"], "it holds an Arrow IPC file"),
        (DATA["AppleDouble"], "AppleDouble"),
        (b"", "it is empty"),
    ):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(SourceError, match=rf"b\.parquet is damaged, truncated or no Parquet file: .*{named}"):
            read_source(make_source(tmp_path / "b.parquet", format="parquet"))
    (tmp_path / "b.jsonl").write_bytes(DATA["a Parquet file"])
    with pytest.raises(SourceError, match="set `format: parquet`"):
        read_source(make_source(tmp_path / "b.jsonl"))


TEXTS = [
    b"BZh91AY&SY is how a bzip2 file begins.",
    b"PK is short for public key. PAR1, GIF89a and II* are others.",
    b"PAR1 is not Parquet here",
    b"GIF89a",
    b"%PDF-1.4 is the first line of many files",
    b"ORC files have rows",
    b"]\n",
    b"x^2 + 1",
    "ÿþ is what a byte order mark looks like in Latin-1".encode(),
    b"070707 is a number",
    b"\xef\xbb\xbfwith a byte order mark",
    b"colours: \x1b[31mred\x1b[0m, and a form feed \x0c",
    b"B",
    b"LZIP",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ending", ["txt", "gz", "7z"])
def test_text_is_text_whatever_it_begins_with_and_is_called(tmp_path: Path, text: bytes, ending: str):
    (tmp_path / f"x.{ending}").write_bytes(text)
    assert read_texts(tmp_path / f"x.{ending}", format="text") == [text.decode("utf-8-sig")]


def test_lines_with_some_control_characters_or_another_encoding_are_rejected_alone(tmp_path: Path):
    lines = [b'{"text": "good"}\n', b'{"text": "\x00\x01\x02\x03"}\n', b'{"text": "caf\xe9"}\n', b'{"text": "good"}\n' * 50]
    (tmp_path / "x").write_bytes(b"".join(lines))
    found = read_source(make_source(tmp_path / "x"))
    assert [item.reason for item in found if isinstance(item, Rejection)] == ["malformed_json", "invalid_utf8"]
    assert len(found) == 53


def test_a_text_of_another_encoding_is_a_rejection_though_it_begins_like_an_archive(tmp_path: Path):
    for begin in (b"070707 ", b"!<arch>\n", b"Salted__"):
        (tmp_path / "x.txt").write_bytes(begin + b"caf\xe9")
        (rejection,) = read_source(make_source(tmp_path / "x.txt", format="text"))
        assert isinstance(rejection, Rejection)
        assert rejection.message.startswith("the file is not valid UTF-8: ")
    (tmp_path / "x.txt").write_bytes(b"fields\x00that\x00NUL\x00parts\x00")
    assert read_texts(tmp_path / "x.txt", format="text") == ["fields\0that\0NUL\0parts\0"]


def test_a_character_that_is_cut_where_the_head_ends_is_text():
    for size in range(HEAD_BYTES - 4, HEAD_BYTES):
        head = (b"a" * size + "中文".encode())[:HEAD_BYTES]
        assert is_plain_text(head)
        assert recognise_format(head) is None
    assert not is_plain_text("中".encode()[:2])


def test_a_name_that_promises_a_compression_is_held_against_the_bytes(tmp_path: Path):
    for name in ("x.gz", "x.bz2", "x.xz", "x.zstd", "x.br", "x.7z"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(SourceError, match=rf"{name} is empty, which no \w+ file is"):
            read_source(make_source(tmp_path / name))
        (tmp_path / name).write_bytes(b"\x8b\x9d\x80abc")
        with pytest.raises(SourceError, match=rf"{name} is damaged or no \w+ file that can be read: it begins with 8b 9d 80"):
            read_source(make_source(tmp_path / name))
        (tmp_path / name).write_bytes(LINES)
        assert len(read_texts(tmp_path / name)) == 40
