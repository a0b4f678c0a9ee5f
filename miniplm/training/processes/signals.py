"""Signals that a process inherited as ignored from whoever started it, taken up again."""

from __future__ import annotations

import signal


def restore_signals() -> None:
    """Makes this process answer SIGINT, SIGTERM and SIGCHLD, also where it was started with them ignored.

    A shell script hands SIGINT down so to what it starts with `&`, and a program that ignored it would ignore Ctrl-C for ever;
    with SIGCHLD ignored it would not get to know how its children ended. SIGHUP stays ignored, as `nohup` means it.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
