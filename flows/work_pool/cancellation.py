"""Ends what a run has on the work pool when the run itself is cancelled."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow

from flows.work_pool import fleet
from flows.work_pool.subflows import cancel_subflows

# The deployments whose flow runs a run starts on the pool.
DEPLOYMENTS = (
    "score-shards",
    "train-reference",
    "tune-teacher",
    "train-student",
    "calibrate-dtypes",
    "fit-proxy",
    "describe-worker",
    "export-parts",
    "prepare-parts",
)


def cancel_children(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """An `on_cancellation` hook: cancels the flow runs that this one has started and that live, in its own process too."""
    cancel_subflows(flow, flow_run, state)
    for deployment in DEPLOYMENTS:
        for child in fleet.find_live(deployment, [f"parent:{flow_run.id}"]):
            fleet.cancel(child)
