"""The storage root: paths of any characters are themselves, and what cannot be one is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations
from pydantic import ValidationError

from miniplm.config.run import SourceConfig
from miniplm.errors import StorageError
from miniplm.storage.root import Storage, open_filesystem


@pytest.mark.parametrize("name", ["a[1]", "a*b?", "k=v", "a::b", "it's", "100%", "new\nline", "back\\slash"])
@pytest.mark.parametrize("root", ["{}", "memory://{}"])
def test_any_name_can_be_a_root_that_is_written_listed_and_deleted(tmp_path: Path, name: str, root: str):
    if root.startswith("memory") and name == "a::b":
        pytest.skip("in a URL `::` joins two file systems")
    storage = Storage(root.format(f"{tmp_path}/{name}"))
    for path in ("a/one.json", "a/deep/two.json", "b/three.json"):
        storage.write_json(path, {"path": path})
    assert storage.list_names("a") == ["deep", "one.json"]
    assert storage.read_json("a/deep/two.json") == {"path": "a/deep/two.json"}
    storage.delete("a")
    assert not storage.exists("a/one.json")
    assert not storage.exists("a/deep/two.json")
    assert storage.exists("b/three.json")
    storage.delete("b/three.json")
    assert not storage.exists("b/three.json")


def test_a_path_is_a_local_one_whatever_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert open_filesystem("a::b/c")[1] == f"{tmp_path}/a::b/c"


@pytest.mark.parametrize("name", ["[a] b\\c", "\\*", "a\\b/c?"])
def test_a_root_that_duckdb_cannot_name_is_refused(tmp_path: Path, name: str):
    with pytest.raises(StorageError, match="has a backslash and one of"):
        Storage(str(tmp_path / name))


def test_a_root_that_is_not_utf8_is_refused_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(StorageError, match=r"caf\\xe9/data has a name that is not UTF-8"):
        Storage("data")
    with pytest.raises(ValidationError, match=r"holds a byte that is not UTF-8 at character \d+; .*write `\?` in its place"):
        SourceConfig(path=f"{folder}/*.jsonl", domain_name="d")


def test_a_file_that_this_user_may_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    storage = Storage(str(tmp_path))
    storage.write_json("a.json", {})
    monkeypatch.setattr(LocalFileSystem, "_open", refuse)
    for read in (storage.read_json, storage.digest, storage.open):
        with pytest.raises(StorageError, match=r"cannot read .*a\.json: Permission denied"):
            read("a.json")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nope://bucket/x", r"nope://bucket/x is in no store that this machine can open \(ValueError: Protocol not known: nope\)"),
        ("s3://", r"s3:// names no bucket"),
    ],
)
def test_a_place_that_cannot_be_opened_is_refused_by_name(url: str, told: str):
    with pytest.raises(StorageError, match=told):
        Storage(url)


def test_below_a_file_there_is_nothing(tmp_path: Path):
    (tmp_path / "file").touch()
    storage = Storage(str(tmp_path / "file" / "root"))
    assert storage.list_names("runs") == []
    assert not storage.exists("runs/run.json")


def test_a_missing_library_of_a_file_system_is_named(monkeypatch: pytest.MonkeyPatch):
    known = {"class": "no_such_module.FileSystem", "err": "Please install no-such-library"}
    monkeypatch.setitem(known_implementations, "missing", known)
    with pytest.raises(
        StorageError, match=r"\(ImportError: Please install no-such-library\); .* install the package that is named"
    ):
        Storage("missing://bucket/x")
