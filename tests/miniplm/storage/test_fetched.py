"""Folders at URLs: copied once, by what is in them; a copy is whole or not there."""

from __future__ import annotations

import fsspec
import pytest

from miniplm.errors import StorageError
from miniplm.storage.fetched import fetch_folder
from miniplm.storage.root import Storage

WANTED = ("*.json", "*.safetensors")


@pytest.fixture
def store(request):
    """A store of this process' memory, and a URL in it that no other test has."""
    url = f"memory://{request.node.name}/models/tiny"
    store = Storage(url)
    for name, content in {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "pickle.bin": b"bad",
        "code/a.json": b"[]",
    }.items():
        store.write_bytes(name, content)
    return store


def test_the_wanted_files_are_copied_once_and_named_by_what_they_are(store, tmp_path):
    folder = fetch_folder(store.root, WANTED, tmp_path)
    assert folder.name == "tiny"
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "code/a.json": b"[]",
    }
    (folder / "config.json").write_text("kept")
    assert fetch_folder(store.root + "/", WANTED, tmp_path) == folder
    assert (folder / "config.json").read_text() == "kept"


def test_what_changes_at_the_url_is_copied_anew_and_the_old_copy_stays(store, tmp_path):
    first = fetch_folder(store.root, WANTED, tmp_path)
    store.write_bytes("model.safetensors", b"WEIGHTS")
    second = fetch_folder(store.root, WANTED, tmp_path)
    assert (first != second, (second / "model.safetensors").read_bytes()) == (True, b"WEIGHTS")
    assert (first / "model.safetensors").read_bytes() == b"weights"


def test_a_copy_that_was_cut_off_is_made_anew(store, tmp_path, monkeypatch):
    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("miniplm.storage.fetched.os.rename", die)
        with pytest.raises(KeyboardInterrupt):
            fetch_folder(store.root, WANTED, tmp_path)
    (leftover,) = tmp_path.glob("*/partial")
    (leftover / "left.json").write_text("of the killed one")
    folder = fetch_folder(store.root, WANTED, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["code", "config.json", "model.safetensors"]


def test_files_that_change_while_they_are_copied_are_refused(store, tmp_path, monkeypatch):
    download = Storage.download

    def change_after(self, *arguments):
        download(self, *arguments)
        store.write_bytes("config.json", b"{ }")

    monkeypatch.setattr(Storage, "download", change_after)
    with pytest.raises(StorageError, match=r"models/tiny changed while they were copied; run the same command again"):
        fetch_folder(store.root, WANTED, tmp_path)


def test_a_cache_that_cannot_be_written_is_named_with_the_setting(store, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write .*cache.*Not a directory.*set HF_HOME"):
        fetch_folder(store.root, WANTED, tmp_path / "cache")


def test_nothing_at_the_url_and_names_that_lead_elsewhere_give_no_file(store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at memory://.*/nothing whose name is one of \*\.json"):
        fetch_folder(store.root + "/nothing", WANTED, tmp_path)
    fsspec.filesystem("memory").pipe_file(f"{store.root_path}/evil/../../x.json", b"{}")
    fetch_folder(store.root, WANTED, tmp_path)
    assert not list(tmp_path.rglob("x.json"))


def test_a_folder_by_its_url_is_itself(tmp_path):
    assert fetch_folder(f"file://{tmp_path}", WANTED, tmp_path / "cache") == tmp_path
    with pytest.raises(FileNotFoundError, match="there is no folder /nowhere"):
        fetch_folder("file:///nowhere", WANTED, tmp_path)
