"""What the processes of a training tell the one that started them: JSON, one message a line, over a socket.

An error goes as its class and words, so that it can be raised again where the user is; nothing is pickled.
"""

from __future__ import annotations

import traceback
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from miniplm.errors import Retry, RunFailedError, find_error_class, judge_retry
from miniplm.foreign_errors import is_out_of_memory
from miniplm.progress import Progress
from miniplm.records.manifests import Record


class Hello(Record):
    """The first message of each process."""

    kind: Literal["hello"] = "hello"
    rank: int
    pid: int


class Moment(Record):
    """A `Progress`."""

    kind: Literal["progress"] = "progress"
    key: str
    done: float
    total: float | None
    unit: str
    detail: str


class LogLine(Record):
    """A record of the logger `miniplm`; `level` is a number of the module `logging`."""

    kind: Literal["log"] = "log"
    level: int
    text: str


class Failure(Record):
    """An error that ended the process; `error` is what `describe_error` calls its class."""

    kind: Literal["failure"] = "failure"
    error: str
    text: str
    errno: int | None = None
    retry: Retry = "elsewhere"
    """Where another try may end otherwise, as `miniplm.errors` judged the error itself."""
    trace: str = ""


class Finished(Record):
    """The last message of a process that has done all."""

    kind: Literal["finished"] = "finished"


Message = Annotated[Hello | Moment | LogLine | Failure | Finished, Field(discriminator="kind")]
_messages: TypeAdapter[Message] = TypeAdapter(Message)


def encode_message(message: Record) -> bytes:
    """One line, its end included."""
    return message.model_dump_json().encode() + b"\n"


def decode_message(line: bytes) -> Message:
    return _messages.validate_json(line)


def encode_progress(progress: Progress) -> Moment:
    return Moment(key=progress.key, done=progress.done, total=progress.total, unit=progress.unit, detail=progress.detail)


def decode_progress(moment: Moment) -> Progress:
    return Progress(moment.key, moment.done, moment.total, moment.unit, moment.detail)


def describe_error(error: BaseException) -> Failure:
    """An error as a message: ours by their names, input/output and memory as what they are, any other as `RunFailedError`."""
    retry = judge_retry(error)
    if find_error_class(type(error).__name__) is type(error):
        return Failure(error=type(error).__name__, text=str(error), retry=retry)
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, OSError):
        failure = Failure(error="OSError", text=str(error.strerror or error), errno=error.errno, trace=trace, retry=retry)
        # Its class, which a library may have judged by, does not come through: only where its number alone is judged the same.
        if judge_retry(rebuild_error(failure)) == retry:
            return failure
    if is_out_of_memory(error):
        return Failure(error="MemoryError", text=str(error), trace=trace, retry=retry)
    return Failure(error="RunFailedError", text=f"{type(error).__name__}: {error}", trace=trace, retry=retry)


def rebuild_error(failure: Failure) -> Exception:
    """The error of a message, to be raised; where it was raised first is a note of it, for those who look for a fault here."""
    error: Exception
    if failure.error == "OSError":
        error = OSError(failure.errno, failure.text) if failure.errno is not None else OSError(failure.text)
    elif failure.error == "MemoryError":
        error = MemoryError(failure.text)
    else:
        kind = find_error_class(failure.error)
        assert kind is not None
        error = kind(failure.text)
    if isinstance(error, RunFailedError):
        error.retry = failure.retry  # what its own class said, which is not known here
    if failure.trace:
        error.add_note(f"In the process of the training:\n{failure.trace}")
    return error
