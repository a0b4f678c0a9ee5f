"""One process at a time on one artifact."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from miniplm.errors import BusyError, StorageError
from miniplm.storage import Storage

LOCKS_FOLDER = ".locks"


@contextmanager
def exclusive(storage: Storage, relative: str, what: str) -> Iterator[None]:
    """Holds the artifact at `relative` for this block; `what` names it in the message, e.g. `corpus c-1a2b3c`.

    Raises `BusyError` at once where another process (or another thread of this one) holds it. The kernel lets go
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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{_describe_holder(descriptor)} is working on {what}; wait for it or stop it") from None
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")}
        content = json.dumps(holder).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        yield
    finally:
        os.close(descriptor)


def _describe_holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"another process (pid {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        # Its holder has taken the lock this moment and not yet written its name.
        return "another process"
