"""Which failures are worth another try: input/output and memory. A wrong value stays wrong."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from miniplm.errors import DeviceError, StorageUnavailableError, TrainingProcessError
from miniplm.models.devices import is_out_of_memory

# Input/output errors that another try does not mend.
_LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def is_transient(error: BaseException) -> bool:
    """Whether a failed task may succeed when it is tried again unchanged."""
    if isinstance(error, OSError):
        return not isinstance(error, _LASTING)
    # A task that lost its GPU goes on with another; where none is left, the next try says so at once.
    # A store that did not answer within its budget of tries may do so after a pause. A training whose process was killed
    # goes on from its last checkpoint.
    if isinstance(error, (DeviceError, StorageUnavailableError, TrainingProcessError)):
        return True
    # The clients of object stores have errors of their own for a lost connection.
    return is_out_of_memory(error) or type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp")


def _retry_if_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    error = state.data if isinstance(state.data, BaseException) else None
    if error is None:
        try:
            state.result()
        except BaseException as raised:
            error = raised
    return error is not None and is_transient(error)


# Given to every task: three more tries after 2, 4 and 8 seconds, with jitter so that many do not come at once.
TASK_OPTIONS: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _retry_if_transient,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
