"""Reading ahead: the same order, bounded, errors as they are and in their turn, a thread that ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from miniplm.training.reading import ReadAhead


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_everything_comes_once_and_in_order() -> None:
    with ReadAhead(lambda key: key * 10, range(3, 8), num_ahead=2) as ahead:
        assert [ahead.take() for _ in range(5)] == [30, 40, 50, 60, 70]


def test_no_more_is_read_than_may_lie_ready() -> None:
    read: list[int] = []
    with ReadAhead(read.append, range(100), num_ahead=2) as ahead:
        # Two lie ready, and one is in the reader's hands.
        wait_until(lambda: len(read) == 3)
        time.sleep(0.05)
        assert len(read) == 3
        ahead.take()
        wait_until(lambda: len(read) == 4)


def test_an_error_is_raised_as_it_is_when_its_turn_comes() -> None:
    error = KeyError("shard")

    def read(key: int) -> int:
        if key == 2:
            raise error
        return key

    with ReadAhead(read, range(9)) as ahead:
        assert [ahead.take(), ahead.take()] == [0, 1]
        with pytest.raises(KeyError) as raised:
            ahead.take()
    assert raised.value is error


def test_leaving_ends_the_thread_whatever_is_left() -> None:
    with pytest.raises(KeyboardInterrupt), ReadAhead(lambda key: key, range(1_000_000), num_ahead=1):
        raise KeyboardInterrupt
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_only_time_in_which_nothing_was_ready_counts_as_waiting() -> None:
    may_read = threading.Event()
    with ReadAhead(lambda key: may_read.wait(20), range(2), num_ahead=2) as ahead:
        threading.Timer(0.2, may_read.set).start()
        ahead.take()
        assert 0.15 < ahead.wait_seconds < 10
        waited = ahead.wait_seconds
        wait_until(lambda: ahead._ready.full() or ahead._ready.qsize() == 1)
        ahead.take()
        assert ahead.wait_seconds - waited < 0.1
