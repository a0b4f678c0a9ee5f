"""Tests of the images take minutes and a Docker engine: they run where this folder is asked for (`make test-containers`), and not with all others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.compose_fleet import ComposeFleet, wait_until_ready
from tests.containers.runs import upload

FOLDER = "tests/containers"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if any(FOLDER in str(argument) for argument in config.invocation_params.args) else True


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeFleet]:
    """The containers, up and healthy; whatever becomes of the tests, they and their data are gone afterwards."""
    fleet = ComposeFleet(tmp_path_factory.mktemp("compose"))
    fleet.copy_checkout()
    fleet.shorten_wait_after_crash(15)
    fleet.build()
    fleet.write_env()
    try:
        fleet.up()
        wait_until_ready(fleet)
        upload(fleet, tmp_path_factory.mktemp("run"))
        yield fleet
    finally:
        fleet.down("--volumes")
    assert fleet.list_containers() == {}
