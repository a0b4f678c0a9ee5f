"""What the message of a failed flow run says of another try."""

from __future__ import annotations

import asyncio

import pytest
from prefect.states import exception_to_crashed_state, exception_to_failed_state

from flows.work_pool.failures import is_lasting_message, strip_message
from miniplm import errors

PREFIX = "Flow run encountered an exception: "
NAMES = sorted(name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception))


def test_the_prefix_of_prefect_is_taken_off() -> None:
    assert strip_message(f"{PREFIX}VersionError: worker a has miniplm 1") == "VersionError: worker a has miniplm 1"


@pytest.mark.parametrize(
    ("message", "told"), [("exit code 137", "exit code 137"), ("", "no message"), (None, "no message"), (PREFIX, "")]
)
def test_other_messages_stay_as_they_are(message: str | None, told: str) -> None:
    assert strip_message(message) == told


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_this_package_are_known_by_their_name(name: str) -> None:
    lasting = getattr(errors, name).retry == "never"
    assert is_lasting_message(f"{PREFIX}{name}: shard-00001: what happened") is lasting
    assert is_lasting_message(f"{name}: what happened") is lasting
    assert is_lasting_message(f"{PREFIX}miniplm.errors.{name}: what happened") is lasting


@pytest.mark.parametrize(
    "message",
    [
        None,
        "",
        PREFIX,
        "Flow run infrastructure exited with non-zero status code 137.",
        "Flow run process could not be started",
        f"{PREFIX}RuntimeError: VersionError: not at the start",
        f"{PREFIX}ConnectError: All connection attempts failed",
        f"{PREFIX}ModuleNotFoundError: No module named 'flows'",
        # Names that the module has and that are no errors.
        "annotations: x",
        "Iterable: x",
        "list_offenders: x",
        "__doc__: x",
        # Python's own.
        "Exception: x",
        "ValueError: x",
        "no sign of life for 300 s: its worker or the way to it is gone",
    ],
)
def test_whatever_else_a_flow_run_died_of_may_pass(message: str | None) -> None:
    assert not is_lasting_message(message)


def test_the_messages_that_prefect_itself_makes_are_understood() -> None:
    def tell(error: Exception) -> str | None:
        return asyncio.run(exception_to_failed_state(error, message=PREFIX.strip())).message

    assert is_lasting_message(tell(errors.VersionError("worker a has miniplm 1, the run was started by miniplm 2")))
    assert is_lasting_message(tell(errors.CorpusError("shard-00003 is damaged:\nits digest differs")))
    assert not is_lasting_message(tell(errors.StorageUnavailableError("s3://bucket has not answered for 10 minutes")))
    assert not is_lasting_message(tell(RuntimeError("CUDA error: out of memory")))
    assert not is_lasting_message(asyncio.run(exception_to_crashed_state(KeyboardInterrupt())).message)


def test_the_names_are_those_of_all_errors_whatever_module_is_loaded() -> None:
    assert {"ConfigError", "VersionError", "CorpusError", "DamagedSourceError", "DamagedFileError", "TrainingProcessError"} <= set(
        NAMES
    )
    assert is_lasting_message(f"{PREFIX}DamagedSourceError: a.jsonl.gz is truncated")
    assert is_lasting_message(f"{PREFIX}DamagedFileError: model.json is not valid JSON")
    assert not is_lasting_message(f"{PREFIX}TrainingProcessError: its process was ended by signal 9")
    assert not is_lasting_message(f"{PREFIX}NoDeviceError: no GPU of this machine answers any more")
