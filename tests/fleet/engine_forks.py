"""Flow runs' processes as forks of one that has imported everything, which costs seconds of a core each time.

A worker starts this file as a script instead of `python -m prefect.engine`. The script has the engine forked, with its own
environment, folder, output and flow run, and lives as long as the engine: it hands on SIGTERM, ends as the engine ends, and takes
the engine with it where it is killed. That the command itself works is for the runs that are started by it (`LocalFleet.fork_engines`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

_ENGINE = ["python", "-m", "prefect.engine"]


def serve(path: str, pid_file: str) -> None:
    """Forks an engine for each script that connects to the socket at `path`; in a process of its own, as this one ends."""
    if os.fork():
        return
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch over the engines
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    Path(pid_file).write_text(str(os.getpid()))
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _watch_engine(connection)
        connection.close()


def _watch_engine(connection: socket.socket) -> NoReturn:
    """Starts an engine, tells the script its process id and how it ended, or kills it where the script is gone."""
    _, outputs, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    child = os.fork()
    if child == 0:
        connection.close()
        _run_engine(request, outputs)
    for output in outputs:
        os.close(output)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{child}\n".encode())
    handle = os.pidfd_open(child)
    ready, _, _ = select.select([handle, connection], [], [])
    if handle not in ready:
        with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run_engine(request: dict[str, Any], outputs: list[int]) -> NoReturn:
    """The body of the fork: what `python -m prefect.engine` does."""
    import runpy

    from tests.warm_miniplm import end_process, enter_environment

    os.setsid()
    for number, output in enumerate(outputs):
        os.dup2(output, number)
    enter_environment(request["environment"], request["folder"])
    sys.argv = ["prefect.engine"]
    sys.modules.pop("prefect.engine", None)
    try:
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    end_process(code)


def main(path: str) -> NoReturn:
    """The script: lives and ends as the engine does."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:  # whoever forks is gone
        os.execvp(_ENGINE[0], _ENGINE)
    request = json.dumps({"environment": dict(os.environ), "folder": os.getcwd()})
    socket.send_fds(connection, [b"!"], [0, 1, 2])
    connection.sendall(f"{request}\n".encode())
    answers = connection.makefile()
    engine = int(answers.readline())
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(engine, number))
    code = int(answers.readline() or 1)
    if code < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
