"""Flow runs in another one's process, on a real server: they have its tags, and none outlives it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run as this_run
from prefect.states import Crashed, Running, Scheduled, State

from flows.work_pool.cancellation import cancel_children
from flows.work_pool.subflows import crash_subflows, tagged_subflows

_seen: list[set[str]] = []


@flow(name="subflows-child")
def child() -> None:
    _seen.append(set(this_run.get_tags()))


@task
def beside() -> None:
    child()


@flow(name="subflows-inner")
def inner() -> None:
    with tagged_subflows("inner"):
        beside.submit().result()


@flow(name="subflows-parent")
def parent() -> None:
    with tagged_subflows("outer"):
        inner()


@pytest.fixture
def client(on_prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def leave_behind(client: SyncPrefectClient, process: FlowRun) -> FlowRun:
    """What a killed process leaves: a flow run of its own that is Running."""
    return client.create_flow_run(child, tags=["miniplm", f"process:{process.id}"], state=Running())


def name_state(client: SyncPrefectClient, run: FlowRun) -> str:
    found = client.read_flow_run(run.id).state
    assert found is not None
    return f"{found.name}: {found.message}"


def test_they_have_the_tags_of_the_process_and_what_an_earlier_start_left_is_ended(client: SyncPrefectClient) -> None:
    """A flow in a flow in a flow, through a task in a thread: what the process is tagged with, and not that it is a parent."""
    run = client.create_flow_run(parent, tags=["miniplm", "parent"])
    ghost, of_others = leave_behind(client, run), leave_behind(client, client.create_flow_run(parent))
    _seen.clear()
    run_flow(parent, flow_run=run)
    assert _seen == [{"miniplm", "run:outer", "run:inner", f"parent:{run.id}", f"process:{run.id}"}]
    assert name_state(client, ghost) == "Running: None"  # a first start has no earlier one
    client.set_flow_run_state(run.id, Crashed(), force=True)
    client.set_flow_run_state(run.id, Scheduled(), force=True)
    run_flow(parent, flow_run=client.read_flow_run(run.id))
    assert name_state(client, ghost) == "Crashed: Its process is gone; its parent was started again."
    assert name_state(client, of_others) == "Running: None"


def test_they_are_ended_with_a_parent_that_crashed_or_was_cancelled(client: SyncPrefectClient) -> None:
    run = client.create_flow_run(parent).model_copy(update={"deployment_id": uuid4()})
    late, now = leave_behind(client, run), State.model_validate(Crashed().model_dump())
    # Of a start that began after the death which is reported late.
    crash_subflows(parent, run, now.model_copy(update={"timestamp": now.timestamp - timedelta(minutes=1)}))
    assert name_state(client, late) == "Running: None"
    # In a terminal the hook runs in the process itself, which ends them.
    crash_subflows(parent, run.model_copy(update={"deployment_id": None}), Crashed())
    assert name_state(client, late) == "Running: None"
    crash_subflows(parent, run, Crashed())
    assert name_state(client, late) == "Crashed: Its parent crashed."
    another = leave_behind(client, run)
    cancel_children(parent, run, Crashed())
    assert name_state(client, another) == "Cancelled: Its parent was cancelled."
    assert name_state(client, late) == "Crashed: Its parent crashed."
