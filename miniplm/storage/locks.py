"""One process at a time on one artifact."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import psutil

from miniplm.errors import BusyError, StorageError
from miniplm.storage.root import Storage

LOCKS_FOLDER = ".locks"

# A process that was killed lets go within milliseconds on an idle machine; one with much memory on a busy one takes longer.
_PATIENCE_WITH_THE_DEAD_SECONDS = 30.0
_SECONDS_BETWEEN_LOOKS = 0.1
_log = logging.getLogger("miniplm")


@dataclass(frozen=True)
class _Holder:
    """Who wrote the lock file last: its holder, or the holder before where this one has not written yet."""

    pid: int
    host: str
    since: str
    attempt_of: str = ""

    def __str__(self) -> str:
        return f"another process (pid {self.pid} on {self.host}, since {self.since})"

    @property
    def is_this_process(self) -> bool:
        return self.host == socket.gethostname() and self.pid == os.getpid()

    @property
    def has_ended(self) -> bool:
        """Whether it was of this machine and is gone; of other machines nothing is known."""
        return self.host == socket.gethostname() and not psutil.pid_exists(self.pid)


@contextmanager
def exclusive(storage: Storage, relative: str, what: str, attempt_of: str = "") -> Iterator[None]:
    """Holds the artifact at `relative` for this block; `what` names it in the message, e.g. `corpus c-1a2b3c`.

    Raises `BusyError` at once where another process (or another thread of this one) holds it. Two holders are waited for: an
    earlier attempt of the same work, which gave the same `attempt_of` (any name of that work; empty: none), until it ends; and
    one of this machine that is dead already and whose files the kernel has yet to close, for half a minute. The kernel lets go
    of it when the process ends, however it ends; the lock file stays and means nothing by itself. Only a local
    root has such locks: on other file systems (`s3`, `gs`, `memory`) this does nothing, and two processes that
    make the same artifact there publish the same bytes twice.
    """
    if not storage.is_local:
        yield
        return
    path = storage.path(f"{LOCKS_FOLDER}/{relative.replace('/', '~')}.lock")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Not truncated: until the lock is ours the content is that of its holder.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}. Give the config a `storage` that this user may write to"
        ) from error
    try:
        _wait_for(descriptor, what, attempt_of)
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        content = json.dumps(asdict(_Holder(os.getpid(), socket.gethostname(), since, attempt_of))).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        yield
    finally:
        os.close(descriptor)  # which lets go of the lock; the file stays, since to delete it would part those that wait for it


def _wait_for(descriptor: int, what: str, attempt_of: str) -> None:
    """Returns with the lock held. Raises `BusyError` where its holder is not one to wait for."""
    until = time.monotonic() + _PATIENCE_WITH_THE_DEAD_SECONDS
    told = False
    while True:
        try:
            # flock and not lockf: a POSIX lock is the process's, so that two of its threads would both hold it, and is lost when any
            # other descriptor of the file is closed.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _read_holder(descriptor)
        if holder is not None and holder.attempt_of and holder.attempt_of == attempt_of and not holder.is_this_process:
            if not told:
                told = True
                _log.warning("an earlier attempt, %s, is still at work on %s: this one goes on when it has ended", holder, what)
        # Without a name its holder has taken the lock this moment; with the name of a dead one either that or the kernel is at it.
        elif time.monotonic() > until or not (holder is None or holder.has_ended):
            raise BusyError(f"{holder or 'another process'} is working on {what}; wait for it or stop it")
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _read_holder(descriptor: int) -> _Holder | None:
    try:
        return _Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None
