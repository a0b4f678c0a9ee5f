"""A test run leaves no process behind, whatever its tests do, and takes Ctrl-C where it was started in the background."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests import processes
from tests.conftest import ROOT

# Each starts something that outlives its parent, and writes down which.
LEAKS = """
    import os, signal, subprocess, sys, time
    import pytest

    def leave(name):
        command = f"sleep 300 & echo $! > {FOLDER}/{name}"
        subprocess.run(["bash", "-c", command], start_new_session=True)

    @pytest.fixture(scope="module", autouse=True)
    def left_by_the_fixture():
        leave("fixture")

    def test_that_fails():
        leave("failed")
        assert False

    def test_that_comes_after_it():
        left = int(open(f"{FOLDER}/failed").read())
        for _ in range(50):
            if not os.path.exists(f"/proc/{left}") or "Z" in open(f"/proc/{left}/stat").read().rpartition(")")[2][:3]:
                break
            time.sleep(0.1)
        else:
            assert False, "the failed test's process lives"
        leave("passed")

    def test_of_signals():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        program = "import signal; raise SystemExit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"
        assert subprocess.run([sys.executable, "-c", program]).returncode == 0

    def test_that_waits():
        leave("waited")
        time.sleep(WAIT)
"""


def start_run(folder: Path, wait_seconds: float) -> subprocess.Popen[str]:
    """Tests that leave processes behind, as `nohup` and `&` start them, below the conftest of this project."""
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    content = textwrap.dedent(LEAKS).replace("FOLDER", str(folder)).replace("WAIT", str(wait_seconds))
    (folder / "test_leaks.py").write_text(content.replace(f"{{{folder}}}", str(folder)))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--rootdir",
        str(folder),
        str(folder),
    ]
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            restore_signals=False,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, ignored)


def find_left(folder: Path) -> dict[str, bool]:
    """Which of the processes that were left behind live."""
    left = {name: int((folder / name).read_text()) for name in ("fixture", "failed", "passed", "waited")}
    return {name: psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for name, pid in left.items()}


def test_a_run_in_the_background_with_a_failing_test_leaves_nothing(tmp_path: Path) -> None:
    run = start_run(tmp_path, 0)
    told, _ = run.communicate(timeout=120)
    assert "1 failed, 3 passed" in told, told
    assert not any(find_left(tmp_path).values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    run = start_run(tmp_path, 300)
    while not (tmp_path / "waited").exists() or not (tmp_path / "waited").read_text():
        assert run.poll() is None
        time.sleep(0.05)
    os.kill(run.pid, number)
    run.communicate(timeout=60)
    assert run.returncode == pytest.ExitCode.INTERRUPTED
    assert not any(find_left(tmp_path).values())


def test_a_run_within_a_run_ends_its_own_processes_alone() -> None:
    with processes.ended_with_block() as outer:
        kept = subprocess.Popen(["sleep", "300"], env=os.environ | outer)
        with processes.ended_with_block() as inner:
            ended = subprocess.Popen(["sleep", "300"], env=os.environ | inner)
        assert ended.wait(10) == -signal.SIGKILL
        assert kept.poll() is None
    assert kept.wait(10) == -signal.SIGKILL
