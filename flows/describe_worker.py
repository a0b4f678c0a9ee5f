"""A worker of the pool says what kind of device it has, so that `dtype: auto` means the same in the whole run."""

from __future__ import annotations

from prefect import flow

from miniplm import __version__
from miniplm.run.pinning import WorkerDescription
from tasks import workers


@flow(name="describe-worker", flow_run_name="describe a worker for {run}")
def describe_worker(storage: str, run: str, version: str = __version__) -> WorkerDescription:
    """Leaves the description of this worker's device with the run.

    Args:
        storage: fsspec URL of the storage root
        run: name of the run that asks
        version: version of miniplm that asks; a worker of another one refuses
    """
    workers.prepare_worker(version)
    return workers.describe_worker(storage, run)
