"""Sources: globs, compressions, the three formats, each rejection and each fault of a file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from miniplm import layout
from miniplm.errors import SourceError
from miniplm.sources.digests import digest_source_files
from miniplm.sources.files import find_source_files
from miniplm.storage.root import Storage, digest_file
from tests.miniplm.source_fixtures import make_source


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_digests_are_kept_by_identity_and_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage = Storage(str(tmp_path / "root"))
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    age(path, 60)
    files = find_source_files(make_source(path))
    digest = digest_file(path)
    assert digest_source_files(storage, files) == [digest]
    assert list(storage.read_json(layout.source_digests()).values()) == [digest]
    monkeypatch.setattr("miniplm.sources.digests.digest_source_file", lambda file: pytest.fail("read again"))
    assert digest_source_files(storage, files) == [digest]


def test_a_changed_file_has_another_digest_though_size_and_time_are_the_same(tmp_path: Path):
    storage = Storage(str(tmp_path / "root"))
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    os.utime(path, (1e9, 1e9))
    first = digest_source_files(storage, find_source_files(make_source(path)))
    time.sleep(0.02)
    path.write_text("two")
    os.utime(path, (1e9, 1e9))
    assert digest_source_files(storage, find_source_files(make_source(path))) != first


def test_a_file_written_just_now_is_not_kept(tmp_path: Path):
    storage = Storage(str(tmp_path / "root"))
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    digest_source_files(storage, find_source_files(make_source(path)))
    assert not storage.exists(layout.source_digests())


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    (file,) = find_source_files(make_source(path))
    file.check_unchanged()
    path.write_text("three")
    with pytest.raises(SourceError, match="has changed while it was being read"):
        file.check_unchanged()
    path.unlink()
    with pytest.raises(SourceError, match="has gone"):
        file.check_unchanged()
