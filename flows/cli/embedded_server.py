"""The temporary Prefect server of a run without PREFECT_API_URL: started once a process, told about when it cannot be."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, get_current_settings

from flows.cli.verbosity import is_verbose
from miniplm.errors import MachineError

_MOST_PORTS = 5
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 5.0
# What a Python process says last of what ended it.
_REASON = re.compile(r"^[\w.]+(?:Error|Exception|Exit)\b.*|^(?:\S+: )?\[Errno \d+\].*", re.MULTILINE)


class EmbeddedServer(SubprocessASGIServer):
    """Prefect's own temporary server, which every client of this process takes once it is made, started with more care.

    Prefect's start waits out its whole limit where the server has died, starts a server that fails again for as long as it is
    let, and goes to the server by a proxy. It takes a port that another process may take at the same moment, and two
    that make the same new database disturb each other.
    """

    # No __init__: Prefect calls it again whenever it asks for the server of this process.
    _said: IO[bytes] | None = None

    def start(self, timeout: int | None = None) -> None:
        """Starts the server, unless it runs. Raises `MachineError` with what it said where it does not come up."""
        if self.running:
            return
        home = get_current_settings().home
        with one_at_a_time(home):
            try:
                self._come_up(timeout or PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value(), home)
            except BaseException:
                self.stop()
                raise
        self.running = True

    def _come_up(self, limit_seconds: float, home: Path) -> None:
        deadline = time.monotonic() + limit_seconds
        for _ in range(_MOST_PORTS):
            self.port = find_free_port()
            process = self.server_process = self._run_uvicorn_command()
            atexit.register(self.stop)
            while process.poll() is None:
                if is_healthy(self.api_url):
                    return
                if time.monotonic() > deadline:
                    raise MachineError(
                        f"Prefect's temporary server (pid {process.pid}) gives no answer at {self.address} after "
                        f"{limit_seconds:.0f} s{self._last_words()}. A busy machine needs more: PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="
                        f"{2 * limit_seconds:.0f}. Where a firewall keeps this machine from its own ports, start a server elsewhere and set PREFECT_API_URL"
                    )
                time.sleep(_POLL_SECONDS)
            if "address already in use" not in self._read_said():
                break
        raise MachineError(
            f"Prefect's temporary server ended with exit code {process.returncode} before it could answer{self._last_words()}. "
            f"Prefect's folder is {home}; PREFECT_HOME=ANOTHER_FOLDER does without what this one holds (the history of earlier runs). "
            "--verbose shows all that the server said"
        )

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(Path(prefect.__file__).parent.parent)]
        command += ["--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(self.port)]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the server)
        return subprocess.Popen(
            [*command, "--log-level", "error", "--lifespan", "on"],
            env={**os.environ, **own, **settings},
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )

    def _read_said(self) -> str:
        if self._said is None:
            return ""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def _last_words(self) -> str:
        said = self._read_said()
        if is_verbose():
            print(said, file=sys.stderr)
        reason = find_reason(said)
        return f" ({reason})" if reason else ""


def find_reason(said: str) -> str:
    """Of all that a server said, the line that names the error which ended it, at most 300 characters."""
    reasons = _REASON.findall(said)
    lines = [line for line in (reasons or said.splitlines()) if line.strip()]
    return lines[-1].strip()[:300] if lines else ""


def find_free_port() -> int:
    """A port of 127.0.0.1 that the kernel gives nobody else for a while."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def is_healthy(api_url: str) -> bool:
    """Whether a Prefect server answers there, asked directly whatever proxy there is."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{api_url}/health", timeout=_ANSWER_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):  # not yet
        return False


@contextlib.contextmanager
def one_at_a_time(home: Path) -> Iterator[None]:
    """Lets one process at a time start a server on a Prefect folder, until one has: then its database is made, and all may."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(home / "miniplm-start.lock", "a+", encoding="utf-8") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: as Prefect itself does it
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        is_made = lock.read() == prefect.__version__ and (home / "prefect.db").exists()
        if not is_made:
            yield
            lock.truncate(0)
            lock.write(prefect.__version__)
    if is_made:
        yield
