"""Says which process this is, among the workers of a fleet, and what it has."""

from __future__ import annotations

import os
import socket
from uuid import UUID

import httpx
from prefect import task
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger
from prefect.runtime import flow_run

from miniplm import __version__
from miniplm.errors import VersionError
from miniplm.run.pinning import WorkerDescription, describe_machine, save_worker
from miniplm.storage.root import Storage
from tasks.credentials import use_credentials_block
from tasks.retries import TASK_OPTIONS


def name_worker() -> str:
    """The name of the Prefect worker that runs this process; without one the machine's."""
    return os.environ.get("PREFECT__WORKER_NAME") or socket.gethostname()


def check_version(wanted: str) -> None:
    """Raises `VersionError` where the run was planned by another version of this package: ids and scores might differ."""
    if wanted != __version__:
        raise VersionError(
            f"worker {name_worker()} has miniplm {__version__}, the run was started by miniplm {wanted}; "
            f"install {wanted} on the worker (or the worker's version where the run is started) and start the worker again"
        )


@task(name="describe-worker", task_run_name="describe worker for {run_name}", **TASK_OPTIONS)
def describe_worker(storage_url: str, run_name: str) -> WorkerDescription:
    """Leaves at the storage root what kind of device the workers of this pool have."""
    description = describe_machine(name_worker())
    save_worker(Storage(storage_url), run_name, description)
    return description


def rename_run(name: str) -> None:
    """Gives this flow run the name that it got to know only now."""
    run_id = flow_run.get_id()
    if run_id and flow_run.get_name() != name:
        try:
            with get_client(sync_client=True) as client:
                client.update_flow_run(UUID(run_id), name=name)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:  # only a name for people
            get_logger("miniplm").warning("the flow run keeps its first name: %s", error)


def use_credentials() -> None:
    """Takes the object store's credentials from the Prefect block that the environment names, where it names one."""
    block = os.environ.get("MINIPLM_S3_BLOCK")
    if block:
        use_credentials_block(block)


def prepare_worker(version: str) -> None:
    """What a process does first that got its work from a run elsewhere: refuses another version, takes its credentials."""
    check_version(version)
    use_credentials()
