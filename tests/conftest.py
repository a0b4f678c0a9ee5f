"""What every test gets: those whose parts are not on this machine are skipped, and say what is missing."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests import forks, processes

if TYPE_CHECKING:
    from tests.s3_server import S3Server
    from tests.tiny_runs import FinishedRun

# Two cores, several processes: one thread each, set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Else PyTorch's compiler tries by two builds of six seconds in all what the CPU says of itself, in each new folder for compiled code.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

processes.take_signals()

ROOT = Path(__file__).resolve().parent.parent
ASSETS = (ROOT / "models" / "smollm2-135m" / "model.safetensors", ROOT / "samples" / "demo" / "SOURCES.md")


def pytest_configure(config: pytest.Config) -> None:
    if is_worker(config):
        forks.take_server()
        return
    processes.mark_run()
    if config.getoption("numprocesses", None):
        forks.share_server()
    else:
        forks.keep_server()


def pytest_unconfigure(config: pytest.Config) -> None:
    """No process outlives the run, whatever became of it; the server that all share ends here too."""
    gc.unfreeze()
    if not is_worker(config):
        processes.end_run()


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with processes.ended_on_failure():
        return (yield)


# What takes longest begins first, so that nothing is left over at the end: the fleet's tests, which mostly wait and come one after
# the other, then whole runs and many models. A machine of the fleet dies first, and what became of its work is told when other tests
# have filled the wait. The fleet's server is started anew late, and short tests end it, as what waits behind a long one waits long.
FIRST = (
    "tests/fleet/test_lost_machines.py::test_a_machine_dies",
    "tests/fleet/test_fleet.py::test_a_shard_that_fails",
    "tests/fleet/test_fleet.py::test_cancelling",
    "tests/fleet/test_fleet.py::test_what_cannot_be",
    "tests/fleet/test_lost_machines.py::test_a_machine_that_dies",
    "tests/fleet/test_fleet.py::test_many_shards",
    "tests/fleet/test_lost_machines.py::",
    "tests/fleet/",
    "tests/faults/",
    "tests/flows/",
    "tests/test_gpu_check.py",
    "tests/miniplm/test_published_vocabulary.py",
    "tests/miniplm/scoring/test_families.py",
)


class OneFleet(LoadFileScheduling):
    """A file's tests stay in one process, and so do all tests of the fleet, of which there is one."""

    def _split_scope(self, nodeid: str) -> str:
        return "fleet" if nodeid.startswith("tests/fleet/") else str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneFleet | None:
    return OneFleet(config, log) if config.getvalue("dist") == "loadfile" else None


def rank(item: pytest.Item) -> int:
    return next((index for index, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """What the tests import stays to the end: to go through its million objects, while it grows and whenever garbage is collected, costs half a second a time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=rank)
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
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody with a Prefect server: a real one, which all processes of a test run share, as its start takes eight seconds."""
    from tests.prefect_server import share_prefect_server

    return share_prefect_server(run_folder(tmp_path_factory))


@pytest.fixture(scope="module")
def on_prefect_server(prefect_server: dict[str, str]) -> Iterator[None]:
    """Flows, tasks and blocks in the process of the test are those of the server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server["PREFECT_API_URL"]}):
        yield


@pytest.fixture(scope="session")
def embedded_prefect(tmp_path_factory: pytest.TempPathFactory, prefect_server: dict[str, str]) -> dict[str, str]:
    """The environment of somebody without a server, so that each run starts its own; its database has the tables already."""
    from tests.prefect_server import give_tables

    home = tmp_path_factory.mktemp("prefect")
    give_tables(prefect_server, home)
    return {"PREFECT_HOME": str(home)}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, embedded_prefect: dict[str, str]) -> FinishedRun:
    """A whole tiny run, as most people make it: with no server. All processes of a test run share it, and change copies only."""
    from tests.tiny_runs import share_finished_run

    return share_finished_run(run_folder(tmp_path_factory), embedded_prefect)


def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") and base.name.startswith("popen-") else base


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with one empty bucket, started once a session (1.5 s)."""
    from tests.s3_server import start_s3_server

    with start_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server
