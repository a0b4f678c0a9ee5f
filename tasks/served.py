"""What this process has open and tasks make parts of: opened once, told to all parts when it fails."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from miniplm.errors import StoppedError
from miniplm.progress import Progress, ProgressCallback
from tasks.progress import shard_callback

Work = TypeVar("Work")


def unless_stopped(stopping: threading.Event, on_progress: ProgressCallback, message: str) -> ProgressCallback:
    """The callback, which raises `StoppedError` with the message once `stopping` is set."""

    def call(progress: Progress) -> None:
        if stopping.is_set():
            raise StoppedError(message)
        on_progress(progress)

    return call


class Served(Generic[Work]):
    """Pieces of work that are open in this process, by key."""

    def __init__(self) -> None:
        self._open: dict[Hashable, tuple[Work, threading.Event]] = {}

    @contextmanager
    def serve(self, key: Hashable, work: Work) -> Iterator[None]:
        """Lets tasks of this process make parts of the work while the block runs. Parts under way when it fails are given up."""
        stopping = threading.Event()
        self._open[key] = (work, stopping)
        try:
            yield
        except BaseException:
            stopping.set()
            raise
        finally:
            del self._open[key]

    def find(self, key: Hashable) -> Work:
        """Work that is open."""
        return self._open[key][0]

    def callback(self, key: Hashable, stage: str, part: str, message: str) -> ProgressCallback:
        """The callback of a part of open work, which raises `StoppedError` with the message where the work is given up."""
        return unless_stopped(self._open[key][1], shard_callback(stage, part), message)
