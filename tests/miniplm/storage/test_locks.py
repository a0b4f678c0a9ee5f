"""Locks between real processes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from miniplm.errors import BusyError, StorageError
from miniplm.storage import locks
from miniplm.storage.locks import LOCKS_FOLDER, exclusive
from miniplm.storage.root import Storage

HOLD = (
    "import sys, time; from miniplm.storage.locks import exclusive; from miniplm.storage.root import Storage\n"
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


HOLD_AS = (
    "import sys; from miniplm.storage.locks import exclusive; from miniplm.storage.root import Storage\n"
    "with exclusive(Storage(sys.argv[1]), 'runs/demo', 'run demo', sys.argv[2]):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


def test_an_earlier_attempt_of_the_same_work_is_waited_for_and_another_s_is_not(tmp_path: Path, caplog):
    command = [sys.executable, "-c", HOLD_AS, str(tmp_path), "flow run 1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    storage, entered = Storage(str(tmp_path)), threading.Event()

    def enter() -> None:
        with exclusive(storage, "runs/demo", "run demo", "flow run 1"):
            entered.set()

    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for attempt_of in ("flow run 2", ""):
            with pytest.raises(BusyError, match=rf"pid {process.pid} "), exclusive(storage, "runs/demo", "run demo", attempt_of):
                pass
        later = threading.Thread(target=enter)
        later.start()
        assert not entered.wait(0.5)
        assert process.poll() is None
    finally:
        process.communicate()
    later.join(10)
    assert entered.is_set()
    told = [record.getMessage() for record in caplog.records if "an earlier attempt" in record.getMessage()]
    assert len(told) == 1
    assert f"(pid {process.pid} on " in told[0]


def test_the_same_work_twice_in_one_process_is_no_earlier_attempt(tmp_path: Path):
    storage = Storage(str(tmp_path))
    with (
        exclusive(storage, "x", "x", "flow run 1"),
        pytest.raises(BusyError, match=rf"pid {os.getpid()} "),
        exclusive(storage, "x", "x", "flow run 1"),
    ):
        pass


@pytest.fixture
def left_behind(tmp_path: Path) -> Iterator[tuple[int, IO[str]]]:
    """The lock of `x`, held by an open file that is all that is left of a process, and that process' id."""
    process = subprocess.Popen(["true"])
    process.wait()
    holder = {"pid": process.pid, "host": socket.gethostname(), "since": "2026-11-24 15:22:23 UTC"}
    path = tmp_path / LOCKS_FOLDER / "x.lock"
    path.parent.mkdir()
    path.write_text(json.dumps(holder))
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield process.pid, file


def test_what_a_dead_process_still_holds_is_waited_for(tmp_path: Path, left_behind):
    def enter() -> int:
        with exclusive(Storage(str(tmp_path)), "x", "x"):
            return int(json.loads((tmp_path / LOCKS_FOLDER / "x.lock").read_text())["pid"])

    with ThreadPoolExecutor(1) as pool:
        entered = pool.submit(enter)
        time.sleep(0.4)
        assert not entered.done()
        left_behind[1].close()
        assert entered.result(10) == os.getpid()


def test_the_wait_for_the_dead_has_an_end(tmp_path: Path, left_behind, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE_WITH_THE_DEAD_SECONDS", 0.3)
    with pytest.raises(BusyError, match=rf"pid {left_behind[0]} on"), exclusive(Storage(str(tmp_path)), "x", "x"):
        pass
