"""The processes of one training: started as a group of their own, listened to, and ended, whatever the reason."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import IO

from miniplm.training.processes.messages import Hello, Message, decode_message

_log = logging.getLogger("miniplm")

_POLL_SECONDS = 0.2
# From asking the processes to end until they are killed: well under the half minute that Prefect gives its flow runs.
_GRACE_SECONDS = 5.0
_KEPT_LINES = 8
_LONGEST_LINE = 400
# torchrun's verdict on the process that failed first; what it prints after it is about itself.
_VERDICT = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: \d+ \(pid: (\d+)\)")


class TrainingProcesses:
    """A command that runs in a process group of its own, and the processes of it that connect to a socket.

    A context manager: when its block is left, however, no process of the group is left. Should this process be killed
    itself, the socket closes, which ends the processes at the other side (`main`).
    """

    def __init__(self, command: list[str], socket_path: str) -> None:
        self._command = command
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(socket_path)
        self._listener.listen()
        self._inbox: queue.Queue[tuple[int, Message | None]] = queue.Queue()
        self._connections: list[socket.socket] = []
        self._connected: dict[int, int] = {}
        self._deadline = float("inf")
        self.last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.exit_codes: dict[int, int] = {}
        """Exit codes, or negative signals, by process id, as far as they are known when the block is left."""

    def __enter__(self) -> TrainingProcesses:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own: ended by one signal, and Ctrl-C in the terminal is ours to pass on
            )
        except BaseException:
            self._listener.close()
            raise
        assert self._process.stdout is not None
        self._output = threading.Thread(target=self._read_output, args=(self._process.stdout,), name="read-output", daemon=True)
        self._output.start()
        threading.Thread(target=self._accept, name="accept-processes", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self.have_ended():
                self._signal(signal.SIGTERM)
                self._wait(_GRACE_SECONDS)
        finally:  # also where the wait itself is interrupted
            self._signal(signal.SIGKILL)
            self._process.wait()
            self.exit_codes.setdefault(self._process.pid, self._process.returncode)
            for connection in (self._listener, *self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self._output.join(timeout=1.0)

    @property
    def leader_pid(self) -> int:
        """The process of the command itself: the one that trains, or torchrun."""
        return self._process.pid

    def have_ended(self) -> bool:
        """Whether the command has ended and every process that was connected."""
        # Not reaped before the block is left: so long its number stands for this group and no other.
        try:
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # somebody in this process asks after all its children
            ended = True
        return ended and not self._connected

    def end_within(self, seconds: float) -> None:
        """Lets `listen` stop after so long, even if a process has not ended by then."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def listen(self) -> Iterator[tuple[int, Message | None]]:
        """What each rank says, in the order in which it comes; None is its end. Stops when all have ended."""
        while True:
            try:
                # Waits in short pieces: an error that is raised in this thread from outside comes between them.
                yield self._inbox.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self.have_ended() or time.monotonic() > self._deadline:
                    return

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.have_ended() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed: nobody is expected any more
                return
            self._connections.append(connection)
            threading.Thread(target=self._receive, args=(connection,), name="receive-messages", daemon=True).start()

    def _receive(self, connection: socket.socket) -> None:
        rank = -1
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):  # killed in the middle of a word
                    break
                message = decode_message(line)
                if isinstance(message, Hello):
                    rank = message.rank
                    self._connected[rank] = message.pid
                self._inbox.put((rank, message))
        if rank >= 0:
            self._inbox.put((rank, None))
            del self._connected[rank]

    def _read_output(self, pipe: IO[bytes]) -> None:
        has_verdict = False
        with pipe:
            for line in pipe:
                text = line.decode(errors="replace").rstrip()
                if not text:
                    continue
                _log.debug("%s", text)
                if (verdict := _VERDICT.search(text)) is not None:
                    has_verdict = True
                    self.exit_codes[int(verdict[2])] = int(verdict[1])
                elif not has_verdict:
                    self.last_lines.append(text[:_LONGEST_LINE])

    def _signal(self, number: signal.Signals) -> None:
        # torchrun gives each of its processes a group of its own.
        for pid in {self._process.pid, *list(self._connected.values())}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)
