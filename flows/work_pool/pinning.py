"""Makes a configuration mean the same on every machine of a fleet: paths are absolute, dtypes explicit."""

from __future__ import annotations

from prefect.runtime import deployment

from flows.work_pool import fleet
from flows.work_pool.cancellation import DEPLOYMENTS
from flows.work_pool.single import run_on_pool
from miniplm import __version__
from miniplm.config.run import RunConfig
from miniplm.errors import ConfigError, PoolWorkError, VersionError
from miniplm.run.pinning import find_worker, make_absolute, needs_worker
from miniplm.run.plan import RunPlan
from miniplm.run.resolution import pin_plan
from miniplm.storage.root import Storage


def check_storage_is_kept(config: RunConfig) -> None:
    """Raises `ConfigError` for a relative storage root in a flow run of a deployment, whose working folder is deleted with it."""
    if "://" not in config.storage and not config.storage.startswith("/") and deployment.get_id():
        raise ConfigError(
            f"storage is {config.storage!r}, relative to a folder that a worker deletes; give a URL or an absolute path"
        )


def make_portable(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths, on a server that knows the deployments it needs.

    Raises `PrefectApiError` or `ConfigError` where there is no such server.
    """
    for name in DEPLOYMENTS:
        fleet.find_deployment(name)
    return make_absolute(config)


def pin_to_workers(storage: Storage, plan: RunPlan) -> RunPlan:
    """The plan with its dtypes as the workers resolve them; one is asked where only they know, once a run."""
    if not needs_worker(plan):
        return plan
    worker = find_worker(storage, plan.name)
    if worker is None:
        parameters = {"storage": plan.storage, "run": plan.name, "version": __version__}
        run_on_pool("describe-worker", f"describe a worker for {plan.name}", parameters, plan, f"describe:{plan.name}")
        worker = find_worker(storage, plan.name)
    if worker is None:
        raise PoolWorkError(
            f"a worker of pool {fleet.count_workers('describe-worker')[1]} described itself, but {plan.storage} does not show it here; "
            "do all machines see the same storage?"
        )
    if worker.version != __version__:
        raise VersionError(
            f"worker {worker.worker} has miniplm {worker.version}, this run is of {__version__}; install one version everywhere"
        )
    return pin_plan(storage, plan, worker)
