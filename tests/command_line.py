"""Runs the command line in a process of its own: the real console script, or a fork that need not import everything first."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.forks import FORKS

MINIPLM = str(Path(sys.executable).parent / "miniplm")


def environment(prefect: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command: this one's, with Prefect as one of the fixtures of conftest.py says, one thread, no hub."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**variables, **prefect, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160", "HF_HUB_OFFLINE": "1"}


def run_miniplm(
    *arguments: str,
    prefect: Mapping[str, str],
    cwd: Path | None = None,
    timeout_seconds: float = 300,
    namespaces_of: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """`miniplm ARGUMENTS`, with what it prints, in a fork of a process that has imported everything.

    `namespaces_of` is a process whose mounts it has, as in `unshare --map-root-user --mount`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start_miniplm(*arguments, prefect=prefect, cwd=cwd, out=out, err=err, namespaces_of=namespaces_of)
        process.join(timeout_seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["miniplm", *arguments], timeout_seconds, err.read_text())
        return subprocess.CompletedProcess(["miniplm", *arguments], process.exitcode, out.read_text(), err.read_text())


def start_miniplm(
    *arguments: str,
    prefect: Mapping[str, str],
    cwd: Path | None = None,
    out: Path = Path(os.devnull),
    err: Path = Path(os.devnull),
    namespaces_of: int | None = None,
) -> BaseProcess:
    """`miniplm ARGUMENTS` as the leader of a process group of its own, started and not waited for."""
    process = FORKS.Process(
        target=_run_fork, args=(list(arguments), environment(prefect), str(cwd or Path.cwd()), str(out), str(err), namespaces_of)
    )
    process.start()
    return process


def _run_fork(*arguments: Any) -> None:
    from tests.warm_miniplm import run

    run(*arguments)


def run_script(
    *arguments: str, prefect: Mapping[str, str], cwd: Path | None = None, timeout_seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """As `run_miniplm`, by the real console script, which imports what it needs."""
    return subprocess.run(
        [MINIPLM, *arguments],
        env=environment(prefect),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
