"""Locks between real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from miniplm.errors import BusyError, StorageError
from miniplm.locks import exclusive
from miniplm.storage import Storage

HOLD = (
    "import sys, time; from miniplm.locks import exclusive; from miniplm.storage import Storage\n"
    "with exclusive(Storage(sys.argv[1]), 'runs/demo', 'run demo'):\n"
    "    print('held', flush=True); time.sleep(60)"
)


def test_one_holder_at_a_time_and_then_the_next(tmp_path: Path):
    storage = Storage(str(tmp_path))
    with exclusive(storage, "runs/demo", "run demo"):
        expected = rf"another process \(pid {os.getpid()} on .*, since .* UTC\) is working on run demo; wait for it or stop it"
        with pytest.raises(BusyError, match=expected), exclusive(storage, "runs/demo", "run demo"):
            pass
        with exclusive(storage, "runs/other", "run other"):
            pass
    with exclusive(storage, "runs/demo", "run demo"):
        pass
    assert storage.list_names("runs") == []


def test_a_killed_holder_lets_go(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        storage = Storage(str(tmp_path))
        with pytest.raises(BusyError, match=rf"pid {process.pid} "), exclusive(storage, "runs/demo", "run demo"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with exclusive(storage, "runs/demo", "run demo"):
        pass


def test_an_error_inside_lets_go(tmp_path: Path):
    storage = Storage(str(tmp_path))
    with pytest.raises(ValueError, match="inside"), exclusive(storage, "x", "x"):
        raise ValueError("inside")
    with exclusive(storage, "x", "x"):
        pass


def test_elsewhere_than_on_disk_nothing_is_held():
    storage = Storage("memory://locks")
    with exclusive(storage, "x", "x"), exclusive(storage, "x", "x"):
        pass


def test_a_root_that_cannot_be_written_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), exclusive(Storage(str(tmp_path / "file/root")), "x", "x"):
        pass
