"""Processes that are forks of one that has imported what they need, which would cost seconds each time.

`multiprocessing` has one such server a process, and what was last said is what it imports: so it is said here, once. The processes of a
test run share the server of the one that started them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from multiprocessing import forkserver

import psutil

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.warm_miniplm", "tests.miniplm.group_trainings"])

_ADDRESS = "MINIPLM_TEST_FORKS"


def share_server() -> None:
    """Starts the server, which ends with this process, for the processes that this one will start."""
    forkserver.ensure_running()
    os.environ[_ADDRESS] = forkserver._forkserver._forkserver_address


def keep_server() -> None:
    """Each process that this one will start has a server of its own, once it needs one."""
    os.environ.pop(_ADDRESS, None)


def take_server() -> None:
    """The server of the process that started this one is this one's too."""
    if address := os.environ.get(_ADDRESS):
        server = forkserver._forkserver
        server._forkserver_address = address
        server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)
        server.ensure_running = lambda: None


def end_forks() -> None:
    """Kills the forks of this process with all that they started: their environment is that of the server, which has no test's mark."""
    for fork in multiprocessing.active_children():
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(fork.pid).children(recursive=True)
            for process in (psutil.Process(fork.pid), *started):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
