"""Packages are used only whole and with the pinned digest; archives are read without unpacking them."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from scripts.packages import FetchError, Package, fetch_package, publish_folder, read_members

CONTENT = b"the file of a package"
PACKAGE = Package("some-package", "1.0", "some_package-1.0.tar.gz", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def pip_that_saves(content: bytes | None, calls: list[list[str]]):
    """In place of pip: saves `content` as the wanted file, or fails as pip does without an index."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found for some-package==1.0")
        (Path(command[command.index("-d") + 1]) / PACKAGE.file).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_a_package_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", pip_that_saves(CONTENT, calls))
    assert fetch_package(PACKAGE, tmp_path).read_bytes() == CONTENT
    assert fetch_package(PACKAGE, tmp_path).read_bytes() == CONTENT
    assert len(calls) == 1
    assert "--no-deps" in calls[0]
    assert "--require-hashes" in calls[0]


def test_a_cached_file_that_is_cut_off_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PACKAGE.file).write_bytes(CONTENT[:-1])
    monkeypatch.setattr(subprocess, "run", pip_that_saves(CONTENT, []))
    assert fetch_package(PACKAGE, tmp_path).read_bytes() == CONTENT


def test_another_digest_than_the_pinned_one_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_saves(CONTENT + b"!", []))
    with pytest.raises(FetchError, match=rf"has sha256 [0-9a-f]{{64}}, but {PACKAGE.sha256} is pinned"):
        fetch_package(PACKAGE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_reason_of_pip_is_shown_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_saves(None, []))
    with pytest.raises(FetchError, match=r"could not download some-package==1\.0:\nERROR: No matching distribution"):
        fetch_package(PACKAGE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_members_of_a_wheel_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in ("texts/b.txt", "texts/a.txt", "code.py"):
            wheel.writestr(name, name.upper())
    assert list(read_members(tmp_path / "a.whl", "texts/*.txt")) == [
        ("texts/a.txt", b"TEXTS/A.TXT"),
        ("texts/b.txt", b"TEXTS/B.TXT"),
    ]


def test_links_and_folders_of_a_source_package_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        folder = tarfile.TarInfo("a/texts.txt")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        link = tarfile.TarInfo("a/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        plain = tarfile.TarInfo("a/plain.txt")
        plain.size = 4
        archive.addfile(plain, io.BytesIO(b"text"))
    assert list(read_members(tmp_path / "a.tar.gz", "*.txt")) == [("a/plain.txt", b"text")]


SCOPED = Package(
    "@scope/some-package", "2.1", "scope-some-package-2.1.tgz", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "npm"
)


def test_a_package_of_npm_is_packed_and_its_scripts_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def npm_pack(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (Path(command[command.index("--pack-destination") + 1]) / SCOPED.file).write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", npm_pack)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert fetch_package(SCOPED, tmp_path) == tmp_path / SCOPED.file
    assert calls[0][:2] == ["npm", "pack"]
    assert calls[0][-1] == "@scope/some-package@2.1"
    assert "--ignore-scripts" in calls[0]


def test_npm_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(FetchError, match=r"@scope/some-package@2\.1 is a package of npm, which is not here"):
        fetch_package(SCOPED, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_another_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for content, fails in (("first", False), ("second", True), ("third", False)):
        try:
            with publish_folder(folder) as aside:
                (aside / content).write_text(content)
                if fails:
                    raise KeyError(content)
        except KeyError:
            assert [path.name for path in folder.iterdir()] == ["first"]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["folder", "folder/third"]
