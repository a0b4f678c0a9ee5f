"""Who works on a remote folder, which has no locks: a file that says so, and is written again while its writer lives."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from miniplm.errors import BusyError
from miniplm.storage.root import Storage

_BEAT_SECONDS = 20.0
# So long after its last sign a process of another machine is taken for dead.
_DEAD_SECONDS = 180.0
_SECONDS_BETWEEN_LOOKS = 5.0
_log = logging.getLogger("miniplm")


@contextmanager
def claim_remote(storage: Storage, relative: str, what: str) -> Iterator[None]:
    """Holds what the file at `relative` stands for, while the block runs; `what` names it in the message.

    Raises `BusyError` where another process holds it and gives a sign of life. One of this machine that is gone is taken over at once,
    one of another machine once it has been silent for three minutes, which is waited for.
    """
    token = uuid.uuid4().hex
    holder = {"token": token, "pid": os.getpid(), "host": socket.gethostname()}
    _wait_for_the_dead(storage, relative, what)
    storage.write_json(relative, holder | {"at": time.time()})
    found = _read(storage, relative)
    if found and found["token"] != token:  # both found nobody, and the other wrote last
        raise BusyError(f"{_name(found)} has begun {what} at the same moment; wait for it")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            storage.write_json(relative, holder | {"at": time.time()})

    thread = threading.Thread(target=beat, daemon=True, name="claim")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        storage.delete(relative)


def _wait_for_the_dead(storage: Storage, relative: str, what: str) -> None:
    first = _read(storage, relative)
    if first is None or time.time() - first["at"] > _DEAD_SECONDS:
        return
    busy = BusyError(f"{_name(first)} is working on {what}; wait for it or stop it")
    if first["host"] == socket.gethostname():
        if psutil.pid_exists(first["pid"]):
            raise busy
        return
    _log.warning("%s was working on %s %.0f s ago: its next sign is waited for", _name(first), what, time.time() - first["at"])
    until = time.monotonic() + _DEAD_SECONDS
    while time.monotonic() < until:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        found = _read(storage, relative)
        if found is None:
            return
        if (found["token"], found["at"]) != (first["token"], first["at"]):
            raise busy


def _read(storage: Storage, relative: str) -> dict[str, Any] | None:
    try:
        content = json.loads(storage.read_bytes(relative))
        return content if {"token", "pid", "host", "at"} <= content.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _name(holder: dict[str, Any]) -> str:
    return f"another process (pid {holder['pid']} on {holder['host']})"
