"""Runs the real console script in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

MINIPLM = str(Path(sys.executable).parent / "miniplm")


def environment(prefect: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command: this one's, with Prefect as one of the fixtures of conftest.py says, one thread, no hub."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**variables, **prefect, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160", "HF_HUB_OFFLINE": "1"}


def run_miniplm(
    *arguments: str, prefect: Mapping[str, str], cwd: Path | None = None, timeout_seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """`miniplm ARGUMENTS`, with what it prints."""
    return subprocess.run(
        [MINIPLM, *arguments],
        env=environment(prefect),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
