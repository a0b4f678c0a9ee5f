"""What was found out of a file is kept at the storage root, where that can be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from miniplm.storage import root
from miniplm.storage.file_facts import digest_kept_file
from miniplm.storage.root import Storage, digest_file


def test_a_fact_is_told_at_a_root_that_cannot_be_written_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    file, storage = tmp_path / "source.jsonl", Storage(str(tmp_path / "data"))
    file.write_text("{}")
    os.utime(file, (0, 0))
    with monkeypatch.context() as patched:
        patched.setattr(root.os, "replace", refuse)
        assert digest_kept_file(storage, file) == digest_file(file)
    assert list((tmp_path / "data").rglob("*.json")) == []
    digest_kept_file(storage, file)
    assert len(list((tmp_path / "data").rglob("*.json"))) == 1
