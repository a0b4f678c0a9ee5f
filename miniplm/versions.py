"""Which versions of what decides the numbers were at work; recorded in every manifest."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from miniplm import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "pyarrow", "duckdb")


def list_versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that compute, by name."""
    versions = {"miniplm": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
