"""Which failures a real Prefect server tries again."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"

from prefect import flow, task

from miniplm.errors import ScoreError, StorageError, TrainingProcessError
from tasks.retries import TASK_OPTIONS

pytestmark = pytest.mark.usefixtures("on_prefect_server")

WITHOUT_DELAY = {**TASK_OPTIONS, "retry_delay_seconds": 0}


@pytest.mark.parametrize(
    ("error", "num_calls"),
    [
        (OSError("reset"), 4),
        (TrainingProcessError("killed"), 4),
        (ValueError("wrong"), 1),
        (ScoreError("NaN"), 1),
        (StorageError("no space left"), 1),
    ],
)
def test_prefect_retries_what_is_passing_and_raises_the_error_itself(error, num_calls):
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
