"""Reading ahead of training: a thread makes the next batches while the device computes, and counts how long it was waited for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

# Batches that are ready and wait: enough to bear a pause of the reader, little beside a window of shards.
_NUM_AHEAD = 3


class ReadAhead(Generic[T]):
    """What `read` gives for each key, in their order, made in a thread of its own; at most `num_ahead` lie ready.

    Used as a context; leaving it ends the thread. What `read` raises, `take` raises, when its turn comes.
    """

    def __init__(self, read: Callable[[int], T], keys: Iterable[int], num_ahead: int = _NUM_AHEAD) -> None:
        self._read = read
        self._keys = keys
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(num_ahead)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        # Seconds for which `take` had nothing to give.
        self.wait_seconds = 0.0

    def __enter__(self) -> ReadAhead[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_closed.set()
        self._thread.join()

    def take(self) -> T:
        """The next one. Not to be called more often than there are keys."""
        started = time.perf_counter()
        value, error = self._ready.get()
        self.wait_seconds += time.perf_counter() - started
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def _run(self) -> None:
        for key in self._keys:
            try:
                item: tuple[T | None, BaseException | None] = (self._read(key), None)
            except BaseException as error:
                item = (None, error)
            if not self._put(item) or item[1] is not None:
                return

    def _put(self, item: tuple[T | None, BaseException | None]) -> bool:
        """Whether there was still someone to take it."""
        while not self._is_closed.is_set():
            try:
                # In short waits: one without a limit would never see that nobody takes any more.
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
