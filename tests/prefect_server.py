"""The Prefect server of a test run: one for all of its processes, started by the first test that needs it, ended with the run."""

from __future__ import annotations

import fcntl
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.command_line import environment

_START_SECONDS = 180
_EMPTY = "empty.db"
# As a fleet's server is started: task runs are written in batches, a fifth of what a whole run costs the server.
_START = Path(__file__).resolve().parent.parent / "deployments" / "start_server.py"


def share_prefect_server(folder: Path) -> dict[str, str]:
    """The environment of a client of the server whose facts lie in a folder; started where there is none."""
    facts = folder / "prefect-server.json"
    with open(folder / "prefect-server.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not facts.exists():
            facts.write_text(json.dumps(_start(folder)))
    variables: dict[str, str] = json.loads(facts.read_text())
    return variables


def _start(folder: Path) -> dict[str, str]:
    home = folder / "prefect-server"
    home.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    command = [sys.executable, str(_START), "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with open(home / "server.log", "wb") as log:
        server = subprocess.Popen(command, env=environment(variables), stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{variables['PREFECT_API_URL']}/health", timeout=1):
                break
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the Prefect server did not start:\n{(home / 'server.log').read_text()[-4000:]}") from None
            time.sleep(0.2)
    with sqlite3.connect(home / "prefect.db") as database, sqlite3.connect(home / _EMPTY) as empty:
        database.backup(empty)
    return variables


def give_tables(server: dict[str, str], home: Path) -> None:
    """Gives a new Prefect home an empty database with all its tables, which take Prefect five seconds to make."""
    shutil.copy(Path(server["PREFECT_HOME"]) / _EMPTY, home / "prefect.db")
