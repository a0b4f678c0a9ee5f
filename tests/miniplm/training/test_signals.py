"""Signals that were inherited as ignored end a process again; SIGHUP stays as `nohup` set it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from miniplm.training.processes.signals import restore_signals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP)


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_ctrl_c_interrupts_a_process_that_was_started_with_it_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    restore_signals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_was_ignored_is_as_by_default_but_for_sighup() -> None:
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    restore_signals()
    assert [signal.getsignal(number) for number in NUMBERS] == [
        signal.default_int_handler,
        signal.SIG_DFL,
        signal.SIG_DFL,
        signal.SIG_IGN,
    ]


def test_a_handler_of_the_program_stays() -> None:
    def handle(*_: object) -> None: ...

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    restore_signals()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [handle, handle]
