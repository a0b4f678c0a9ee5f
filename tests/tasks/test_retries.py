"""Which failures a real Prefect server tries again."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"

import torch
from prefect import flow, task

from miniplm.errors import ConfigError, ScoreError, StorageError, StorageUnavailableError, TrainingError, TrainingProcessError
from tasks.retries import TASK_OPTIONS, is_transient

pytestmark = pytest.mark.usefixtures("on_prefect_server")

WITHOUT_DELAY = {**TASK_OPTIONS, "retry_delay_seconds": 0}


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError("connection reset"), True),
        (ConnectionError(), True),
        (TimeoutError(), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (FileNotFoundError("x"), False),
        (PermissionError("x"), False),
        (ValueError("x"), False),
        (ConfigError("x"), False),
        (ScoreError("x"), False),
        (StorageError("x"), False),
        (StorageUnavailableError("x"), True),
        (TrainingError("x"), False),
        (TrainingProcessError("x"), True),
        (RuntimeError("shape"), False),
    ],
)
def test_only_input_output_and_memory_are_transient(error, transient):
    assert is_transient(error) is transient


@pytest.mark.parametrize(("error", "num_calls"), [(OSError("reset"), 4), (ValueError("wrong"), 1), (ScoreError("NaN"), 1)])
def test_prefect_retries_what_is_transient_and_raises_the_error_itself(error, num_calls):
    calls = []

    @task(**WITHOUT_DELAY)
    def work():
        calls.append(1)
        raise error

    @flow
    def run():
        work()

    with pytest.raises(type(error), match=str(error)):
        run()
    assert len(calls) == num_calls


def test_a_task_that_recovers_gives_its_result():
    calls = []

    @task(**WITHOUT_DELAY)
    def work():
        calls.append(1)
        if len(calls) < 3:
            raise OSError("reset")
        return 7

    @flow
    def run():
        return work()

    assert run() == 7
    assert len(calls) == 3
