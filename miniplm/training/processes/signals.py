"""Takes up again the signals that a process inherited as ignored."""

from __future__ import annotations

import signal


def restore_signals() -> None:
    """Makes this process answer SIGINT, SIGTERM and SIGCHLD, also where it was started with them ignored.

    A shell script starts programs with `&` so that they ignore SIGINT, and such a program would never answer Ctrl-C; with SIGCHLD
    ignored it would not learn how its children ended. SIGHUP stays ignored, as `nohup` means it.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
