"""A process with a limit: what hangs or crashes costs its own time, and leaves nothing running behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_TICK_SECONDS = 0.2


def run_limited(
    command: Sequence[str],
    log: Path,
    limit_seconds: float,
    environment: Mapping[str, str],
    on_tick: Callable[[int], None] = lambda pid: None,
) -> int | None:
    """Runs a command in the repository's root to its end; its exit code, None where it was killed at the limit.

    All that it says goes to `log`. `on_tick` is called with its id, five times a second, as long as it runs.
    """
    deadline = time.monotonic() + limit_seconds
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=dict(environment),
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while (left := deadline - time.monotonic()) > 0:
                on_tick(process.pid)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(min(left, _TICK_SECONDS))
            return None
        finally:
            _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what the command left running too, so that the next one has the device for itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
