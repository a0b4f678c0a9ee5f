"""The flow runs in another one's process: tagged as that is, and ended where it ended without them.

Prefect ends a flow run whose process died by what its worker reports, and knows nothing of those inside it: they would be Running for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import tags
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import TagsContext
from prefect.flows import Flow
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Crashed

from flows.work_pool import fleet

# Of parents themselves, and of whatever is in the process of a flow run; gpu-workers.sh looks for the second too.
_PARENT, _PROCESS = "parent", "process:"


@contextmanager
def tagged_subflows(run_name: str) -> Iterator[None]:
    """Flow runs that begin in this block in this process have this one's tags, and are found as its own.

    Those of a deployment's run thereby have the tag by which silent runs are found (automations/stale-run.yaml). What an earlier
    start of this flow run left Running is ended.
    """
    new = {f"run:{run_name}", f"parent:{this_run.get_root_flow_run_id()}", *this_run.get_tags()} - {_PARENT}
    if not any(tag.startswith(_PROCESS) for tag in TagsContext.get().current_tags):
        new.add(f"{_PROCESS}{this_run.get_id()}")
        if this_run.get_run_count() > 1:
            _end(str(this_run.get_id()), Crashed(message="Its process is gone; its parent was started again."))
    with tags(*new):
        yield


def crash_subflows(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """An `on_crashed` hook: ends what was at work in the process of this flow run when it died."""
    if flow_run.deployment_id is not None:  # else this is that process, which ends them itself
        _end(str(flow_run.id), Crashed(message="Its parent crashed."), state)


def cancel_subflows(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """An `on_cancellation` hook: ends what was at work in the process of this flow run."""
    _end(str(flow_run.id), Cancelled(message="Its parent was cancelled."), state)


def _end(process_id: str, end: State[Any], ended: State[Any] | None = None) -> None:
    """A worker may report a death late: what began after that was `ended` is of a later start, and stays."""
    for run in fleet.find_subflows([f"{_PROCESS}{process_id}"]):
        if ended is None or run.created is None or run.created <= ended.timestamp:
            fleet.end(run, end)
