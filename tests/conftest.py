"""What every test gets: those whose parts are not on this machine are skipped, and say what is missing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.command_line import environment

if TYPE_CHECKING:
    from tests.s3_server import S3Server

# Two cores, several processes: one thread each, set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
ASSETS = (ROOT / "models" / "smollm2-135m" / "model.safetensors", ROOT / "samples" / "demo" / "SOURCES.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [str(path.relative_to(ROOT)) for path in ASSETS if not path.exists()]
    no_assets = pytest.mark.skip(reason=f"{', '.join(missing)} not there: run `make assets` (`make test` does)")
    no_device = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if missing and item.get_closest_marker("real"):
            item.add_marker(no_assets)
        if item.get_closest_marker("gpu") and not has_cuda():
            item.add_marker(no_device)


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def embedded_prefect(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a newcomer: no server, so that each run starts its own."""
    return {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of somebody with a Prefect server, a real one, started once a session: a run starts ten seconds sooner."""
    home = tmp_path_factory.mktemp("prefect-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    command = [
        str(Path(sys.executable).parent / "prefect"),
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    with open(home / "server.log", "wb") as log:
        server = subprocess.Popen(command, env=environment(variables), stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{variables['PREFECT_API_URL']}/health", timeout=1):
                    break
            except OSError:
                assert server.poll() is None, (home / "server.log").read_text()
                time.sleep(0.2)
        yield variables
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with one empty bucket, started once a session (1.5 s)."""
    from tests.s3_server import start_s3_server

    with start_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server
