"""Tests of the images take minutes and a Docker engine: they run where this folder is asked for (`make test-containers`), and not with all others."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = "tests/containers"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if any(FOLDER in str(argument) for argument in config.invocation_params.args) else True
