"""The processes of a test run: they take Ctrl-C however the run was started, and none outlives it.

All that a run starts has a mark in its environment, which tells it from what else runs here, even where it has left its parent,
its group and its session. What starts in a test, and in a run that a test starts, has a longer mark, so that each ends its own alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.forks import end_forks

_MARK = "MINIPLM_TEST_RUN"
_numbers = itertools.count()


def take_signals() -> None:
    """Ctrl-C and SIGTERM end this process by way of its fixtures, and its children are born with Ctrl-C in force.

    A shell starts what it puts into the background with SIGINT ignored, as in `nohup make test &`, and children inherit that.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def mark_run() -> None:
    """Marks all processes that this one and its workers will start."""
    os.environ[_MARK] = _lengthen(os.environ.get(_MARK, ""))


def _lengthen(mark: str) -> str:
    return f"{mark}/{os.getpid()}-{time.time_ns()}-{next(_numbers)}"


@contextmanager
def ended_on_failure() -> Iterator[None]:
    """Where the block fails, what it started is killed: a test that waits for its processes no more leaves none to the next."""
    mark = os.environ[_MARK]
    os.environ[_MARK] = own = _lengthen(mark)
    try:
        yield
    except BaseException:
        end_marked(own)
        end_forks()
        raise
    finally:
        os.environ[_MARK] = mark


def end_run() -> list[str]:
    """Kills all processes of this run but itself; gives their commands."""
    return end_marked(os.environ[_MARK])


def end_marked(mark: str) -> list[str]:
    """Kills all processes with this mark, and those they start meanwhile; gives their commands."""
    ended: dict[int, str] = {}
    while left := [pid for pid in _list_marked(mark) if pid not in ended]:
        for pid in left:
            ended[pid] = ""
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                ended[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                os.kill(pid, signal.SIGKILL)
    return [command for command in ended.values() if command]


def _list_marked(mark: str) -> Iterator[int]:
    entry = f"{_MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended, or is another user's
            continue
        if int(folder.name) != os.getpid() and any(value == entry or value.startswith(entry + b"/") for value in variables):
            yield int(folder.name)


@contextmanager
def ended_with_block() -> Iterator[dict[str, str]]:
    """Variables for the environment of processes, which are killed when the block ends, with all that they started."""
    mark = _lengthen(os.environ[_MARK])
    try:
        yield {_MARK: mark}
    finally:
        end_marked(mark)
