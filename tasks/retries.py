"""How a task is tried again; which failures are worth it is the policy of `miniplm.errors`."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from miniplm.errors import is_passing


def _retry_if_passing(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    error = state.data if isinstance(state.data, BaseException) else None
    if error is None:
        try:
            state.result()
        except BaseException as raised:
            error = raised
    return error is not None and is_passing(error)


# Given to every task: three more tries after 2, 4 and 8 seconds, with jitter so that many do not come at once.
TASK_OPTIONS: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _retry_if_passing,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
