"""Makes the plan of a run."""

from __future__ import annotations

from prefect import task

from miniplm.config.run import RunConfig
from miniplm.run import resolution
from miniplm.run.plan import RunPlan
from tasks.retries import TASK_OPTIONS


@task(name="resolve-plan", task_run_name="check inputs", **TASK_OPTIONS)
def resolve_plan(config: RunConfig) -> RunPlan:
    """Says what a configuration means here, and refuses what would fail only after hours: storage, sources, models and their tokenizers."""
    return resolution.resolve(config)
