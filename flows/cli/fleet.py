"""What concerns a fleet of workers: giving it a run, and repairing the scores of one."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import (
    DEFAULT_STORAGE,
    AsJson,
    StorageRoot,
    Verbose,
    is_config_file,
    print_json,
    refuse_beside,
    resolve_config,
    start_quietly,
    watched_flow,
)
from miniplm.errors import ConfigError

if TYPE_CHECKING:
    from miniplm.config.run import RunConfig


class Models(StrEnum):
    """Whose scores are repaired."""

    both = "both"
    teacher = "teacher"
    reference = "reference"
    proxy = "proxy"


def rescore(
    target: Annotated[
        str, typer.Argument(metavar="RUN|CONFIG", help="Name of a run at --storage, or the YAML file it was started with.")
    ],
    failed: Annotated[
        bool, typer.Option("--failed", help="Every shard without a verified score: failed, missing or broken.")
    ] = False,
    shard: Annotated[list[int] | None, typer.Option(min=0, help="Only this shard; may be repeated.")] = None,
    model: Annotated[Models, typer.Option(help="Whose scores are repaired.")] = Models.both,
    again: Annotated[bool, typer.Option("--again", help="With --shard: score them even where a verified score is there.")] = False,
    storage: StorageRoot = DEFAULT_STORAGE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Repair a run's scores: score the shards that failed, and nothing else; by the fleet where the run used it.

    Then start the run again (`miniplm run`, or Retry in the Prefect UI): it goes on from there.
    """
    if failed == bool(shard):
        raise ConfigError("give either --failed (every shard without a verified score) or --shard N (may be repeated)")
    if failed:
        refuse_beside("--failed", {"--again": again})
    start_quietly(verbose)
    name = target
    if is_config_file(target):
        config = resolve_config(target, (), storage)
        name, storage = config.name, config.storage
    from miniplm.records.run import load_run
    from miniplm.storage.root import Storage

    load_run(Storage(storage), name)
    with watched_flow(verbose, as_json) as console:
        from flows.rescore_shards import rescore_shards

        stages = rescore_shards(storage, name, model.value, "all failed" if failed else sorted(set(shard or ())), again)
    if as_json:
        print_json([stage.as_json() for stage in stages])
        return
    for stage in stages:
        console.print(f"{stage.name}: {stage.num_units:,} tokens are scored" + (" (nothing was missing)" if stage.reused else ""))
    where = "" if is_config_file(target) or storage == DEFAULT_STORAGE else f" --storage {storage}"
    console.print(f"Next: `miniplm run {target}{where}`, or Retry in the Prefect UI; either goes on from here.")


def submit_run(config: RunConfig, as_json: bool, verbose: bool) -> None:
    """Makes a flow run of the deployment run-miniplm. Raises `PrefectApiError` without a server that knows it."""
    start_quietly(verbose)
    from flows.cli.prefect_api import provide_prefect_api

    provide_prefect_api()
    from prefect.deployments import run_deployment
    from prefect.settings import PREFECT_UI_URL

    from flows.work_pool import fleet
    from miniplm.config.run import config_as_dict

    deployment = fleet.find_deployment("run-miniplm")
    run = run_deployment(
        deployment.id,
        parameters={"config": config_as_dict(config)},
        flow_run_name=f"run {config.name}",
        tags=[fleet.TAG, f"run:{config.name}"],
        timeout=0,
        as_subflow=False,
    )
    url = f"{PREFECT_UI_URL.value()}/runs/flow-run/{run.id}"  # type: ignore[union-attr]
    if as_json:
        print_json({"flow_run_id": str(run.id), "url": url})  # type: ignore[union-attr]
        return
    num_workers, pool = fleet.count_workers("run-miniplm")
    print(f"run {config.name} is submitted: {url}")
    if not num_workers:
        print(
            f"No worker of pool {pool} is online; it waits for one: `deployments/gpu-workers.sh --gpus none --pool {pool} --limit none`"
        )
