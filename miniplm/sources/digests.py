"""Digests and compressions of source files: each file is read once, and what it told is kept by its identity."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from miniplm.sources.blocks import recognise_file
from miniplm.sources.compression import Compression
from miniplm.sources.files import SourceFile, open_raw
from miniplm.storage.file_facts import SETTLED_SECONDS, look_up
from miniplm.storage.root import Storage, digest_stream

_NONE = "none"


def digest_source_files(storage: Storage, files: Sequence[SourceFile]) -> list[str]:
    """The digest of each file's stored bytes, in order. Raises `SourceError` where one cannot be read."""
    return _look_up(storage, "", files, digest_source_file)


def recognise_source_files(storage: Storage, files: Sequence[SourceFile]) -> list[Compression | None]:
    """How each file is compressed, by its first bytes, in order. Raises `SourceError` where one cannot be read."""
    found = _look_up(storage, " compression", files, lambda file: recognise_file(file) or _NONE)
    return [None if name == _NONE else cast(Compression, name) for name in found]


def _look_up(storage: Storage, fact: str, files: Sequence[SourceFile], look: Callable[[SourceFile], str]) -> list[str]:
    by_key = {_identify(file) + fact: file for file in files}
    looks = {key: partial(look, file) for key, file in by_key.items()}
    facts = look_up(storage, looks, lambda key: _is_settled(by_key[key]))
    return [facts[_identify(file) + fact] for file in files]


def _identify(file: SourceFile) -> str:
    return f"{file.path} size={file.num_bytes} {file.version}"


def digest_source_file(file: SourceFile) -> str:
    """The digest of a file's stored bytes, which are read. Raises `SourceError` where it cannot be, or changes meanwhile."""
    with open_raw(file) as raw:
        digest = digest_stream(raw)
    # Else the digest of a file that was written to meanwhile, half old and half new, would name the corpus.
    file.check_unchanged()
    return digest


def _is_settled(file: SourceFile) -> bool:
    if not file.version:
        return False
    return not file.is_local or time.time() - os.stat(file.filesystem_path).st_mtime > SETTLED_SECONDS
