"""Several runs over one configuration: a parent flow of which each combination of values is a run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from prefect import flow, get_run_logger, task
from prefect.runtime import flow_run

from flows.parameters import ConfigUrl, InlineConfig, resolve_parameter
from flows.run_miniplm import run_miniplm
from flows.work_pool import fleet
from flows.work_pool.cancellation import cancel_children
from miniplm.config.run import RunConfig, config_as_dict
from miniplm.config.sweeps import SweptRun, expand_sweep
from miniplm.errors import ConfigError, MiniplmError, RunError, RunFailedError, first_line
from miniplm.records.run import RunRecord
from miniplm.records.sweep import SweepRecord, SweptRunRecord, save_sweep
from miniplm.report.sweep import write_sweep_page
from miniplm.storage.root import Storage
from tasks.retries import TASK_OPTIONS
from tasks.workers import rename_run, use_credentials


def _name_sweep() -> str:
    config = flow_run.get_parameters()["config"]
    name = config if isinstance(config, str) else config["name"] if isinstance(config, dict) else config.name
    return f"sweep {name.rsplit('/', 1)[-1].rsplit('.yaml', 1)[0]}"


@flow(name="sweep", flow_run_name=_name_sweep, on_cancellation=[cancel_children])
def sweep(config: ConfigUrl | InlineConfig, settings: Sequence[str]) -> SweepRecord:
    """Runs a configuration for each combination of values; what runs share is computed once, and a killed sweep goes on.

    On a work pool all runs are at work at the same time, here one after the other. One that fails does not stop the others: raises
    `RunError` with the reasons once all have ended, `ConfigError` before anything starts where a combination is not valid.

    Args:
        config: a run's configuration: the URL of its YAML file, or all of it here
        settings: fields with their values, as FIELD=VALUE,VALUE, e.g. selection.ratio=0.3,0.5,0.7
    """
    use_credentials()
    base = resolve_parameter(config)
    rename_run(f"sweep {base.name}")
    runs = expand_sweep(config_as_dict(base), settings, f"sweep {base.name}")
    if len({run.config.storage for run in runs}) > 1:
        raise ConfigError("a sweep has one storage root, where its runs find each other's work; leave `storage` as it is")
    storage = Storage(runs[0].config.storage)
    record = SweepRecord(
        name=base.name,
        runs=tuple(SweptRunRecord(run_name=run.config.name, values=run.values) for run in runs),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    save_sweep(storage, record)
    fleet.start_waiting()
    failures = _run_beside(runs) if base.is_on_work_pool else _run_in_turn(runs, storage, record.name)
    page = write_sweep_page(storage, record.name)
    if failures:
        _raise_failures(failures, len(runs), page)
    return record


def _run_in_turn(runs: Sequence[SweptRun], storage: Storage, name: str) -> dict[str, Exception]:
    failures: dict[str, Exception] = {}
    for run in runs:
        try:
            run_miniplm(run.config)
        except Exception as error:  # told when the others have ended
            get_run_logger().error("run %s of the sweep failed: %s", run.config.name, first_line(error))
            failures[run.config.name] = error
        write_sweep_page(storage, name)
    return failures


def _run_beside(runs: Sequence[SweptRun]) -> dict[str, Exception]:
    futures = {run.config.name: _run_one.submit(run.config) for run in runs}
    try:
        results = {name: future.result(raise_on_failure=False) for name, future in futures.items()}
    except BaseException:  # told to end: the threads that wait for the pool must not hold the process
        fleet.stop_waiting()
        raise
    return {name: result for name, result in results.items() if isinstance(result, Exception)}


@task(name="run-beside", task_run_name="run {config.name}, beside the others", **TASK_OPTIONS)
def _run_one(config: RunConfig) -> RunRecord:
    return run_miniplm(config)


def _raise_failures(failures: dict[str, Exception], num_runs: int, page: str) -> None:
    lines = [f"{len(failures)} of {num_runs} runs failed; the others are kept, and the same sweep goes on with these:"]
    lines += [f"  {name}: {type(error).__name__}: {error}" for name, error in failures.items()]
    lines.append(f"page: {page}")
    is_told = all(isinstance(error, MiniplmError | ConfigError) for error in failures.values())
    raise (RunError if is_told else RunFailedError)("\n".join(lines)) from next(iter(failures.values()))
