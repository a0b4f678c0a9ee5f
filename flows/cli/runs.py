"""`run`, `demo` and `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import (
    AsJson,
    Asked,
    Overrides,
    Verbose,
    give,
    on_a_run,
    print_json,
    resolve_config,
    start_quietly,
    watched_flow,
)
from miniplm.errors import ConfigError

if TYPE_CHECKING:
    from miniplm.config.run import RunConfig

DEMO_CONFIG = "deployments/configs/demo.yaml"


@on_a_run
def run(
    asked: Asked,
    submit: Annotated[
        bool,
        typer.Option("--submit", help="Give the run to the fleet (deployment run-miniplm) and return; watch it in the Prefect UI."),
    ] = False,
) -> None:
    """Refine a corpus and train students: the whole road, or what is missing of it.

    Whatever is finished at the storage root is found and not done again: a killed run goes on where it was, another
    ratio or student costs no new scores.
    """
    config = asked.resolve_config()
    if submit:
        from flows.cli.fleet import submit_run

        submit_run(config, asked.as_json, asked.verbose)
    else:
        _run(config, asked.as_json, asked.verbose)


def demo(overrides: Overrides = None, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Run the demo: a real teacher, five domains, about 100 k tokens, two students; a few minutes on two cores."""
    start_quietly(verbose)
    if not Path(DEMO_CONFIG).is_file():
        raise ConfigError(
            f"there is no {DEMO_CONFIG} here; clone the repository and run `make demo` in it, which also fetches the demo's model and text"
        )
    _run(resolve_config(DEMO_CONFIG, overrides), as_json, verbose)


def _run(config: RunConfig, as_json: bool, verbose: bool) -> None:
    from flows.cli.results import print_run
    from miniplm.run.resolution import resolve
    from miniplm.run.status import find_complete_run
    from miniplm.storage.root import Storage

    plan = resolve(config)
    storage = Storage(plan.storage)
    record = find_complete_run(storage, plan)
    if record is None:
        with watched_flow(verbose, as_json):
            from flows.run_miniplm import run_miniplm

            record = run_miniplm(config)
    if not as_json:
        print_run(storage, record)
        return
    from miniplm.run.truth import find_truth

    truth = find_truth(storage, record)
    print_json(record.as_json() | ({} if truth is None else {"truth": truth.as_json()}))


@on_a_run
def plan(
    asked: Asked,
    usd_per_gpu_hour: Annotated[float | None, typer.Option(min=0, help="Price of a device hour; prints the cost.")] = None,
) -> None:
    """What a run will cost: shards, tokens, hours and bytes, from counts and a short measured probe. Runs nothing else."""
    from flows.cli.tables import print_plan
    from miniplm.run.cost import plan_run
    from miniplm.run.resolution import resolve

    result = plan_run(resolve(asked.resolve_config(), checks=False), usd_per_gpu_hour)
    give(asked.as_json, result, print_plan)
