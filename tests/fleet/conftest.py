"""One real fleet for all of its tests, which stop parts of it and so run one after the other.

It ends with the last of them: that takes ten seconds, in which the other processes of a test run have tests left.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import pytest

from tests.fleet.local_fleet import LocalFleet


@pytest.fixture(scope="package")
def started_fleet() -> Iterator[LocalFleet]:
    if not (shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))):
        pytest.skip("PostgreSQL is not installed: `make test` installs it on Debian and Ubuntu")
    # PostgreSQL's user must reach it, which pytest's own folders do not allow.
    folder = Path(tempfile.mkdtemp(prefix="miniplm-fleet-", dir="/var/tmp"))
    local = LocalFleet(folder)
    ensure_running()  # what `fork_engines` forks imports what it needs, while the fleet starts
    try:
        local.start()
        yield local
    finally:
        local.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def fleet(started_fleet: LocalFleet) -> LocalFleet:
    """The fleet when flow runs have been started as they are shipped (`lost_machine`), and from now on are forks."""
    started_fleet.fork_engines()
    return started_fleet
