"""Publishes what a preparation has made in a thread, one after the other, while the next shard is filled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Publisher:
    """Does jobs in the order they came, so that a state is never there before what it speaks of; after one that failed, none.

    At most `most_waiting` wait, each with a shard in memory.
    """

    def __init__(self, most_waiting: int = 2) -> None:
        self._most_waiting = most_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._waiting: deque[Future[None]] = deque()
        self._has_failed = False

    def submit(self, job: Callable[[], object]) -> None:
        """Does it later; raises what an earlier one raised."""
        self._waiting.append(self._thread.submit(self._do, job))
        while len(self._waiting) > self._most_waiting or self._waiting[0].done():
            self._waiting.popleft().result()
            if not self._waiting:
                break

    def finish(self) -> None:
        """Waits for all; raises what one of them raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def _do(self, job: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            job()
        except BaseException:
            self._has_failed = True
            raise

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self._has_failed = True  # whatever waits now is not wanted
        self._thread.shutdown(wait=True, cancel_futures=True)
