"""Every error of this package, with the one policy of trying again.

`ConfigError` (a `ValueError`) is about what the user wrote; the subclasses of `MiniplmError` are about the
state of artifacts: sources, models, shards, scores, storage. Both are reported as one message (what failed,
where, the value got, what is allowed, the next step) and end the command with exit code 2. Anything else is
a failed run: exit code 1.

Whether another try of the unchanged work may end otherwise is an attribute of the class, `retry`: `never`, since
whoever tries meets the same inputs; `elsewhere`: this process would meet it again, another worker (or another
process, or a later time) may not; `here`: in this process, seconds later. The class tree with it:

    ConfigError                      never      the same configuration is refused by every worker
    MiniplmError                     never      an artifact has to be made again or mended first
      SourceError                    never      of a source that changes a person knows when it is whole: a try that
                                                met it at rest for a second would make a corpus of half a file
        DamagedSourceError           never
          NotOneFileError            never
      TokenizerError                 never
      ModelError                     never
      CorpusError                    never
      EncodingProcessError           here       the process was killed; another try goes on from the shards that are there
      DerivedError                   never
      ScoreError                     never      also of what does not fit in memory with one sequence at a time
      DeviceError                    here       the lost GPU is out of use: the next try takes another one
      NoDeviceError                  elsewhere  this machine has no such GPU, or none of its GPUs is left
      FidelityError                  never
      ProxyError                     never
      ScoreJoinError                 never
      TrainingError                  never
        TrainingProcessError         here       the process was killed; the next one goes on from the last checkpoint
      ScalingError                   never
      EvaluationError                never
      RunError                       never
      StorageError                   elsewhere  no right, no space, wrong credentials: of this machine or its user
        StorageUnavailableError      here       did not answer within the budget of tries
        DamagedFileError             never      whoever reads it gets the same bytes
      VersionError                   never      a worker of another version has to be started anew; idle, it would
                                                take the work again before the right ones
      PrefectApiError                elsewhere  this machine's way to the server, or its credentials
      PoolWorkError                  never      it was tried by this policy already
      MachineError                   never      a person mends the machine
      BusyError                      never      a person decides: wait for the other process, or stop it
    RunFailedError                   elsewhere  nobody knows the reason
    StoppedError                     elsewhere  who stopped this process did not mean the others
    OutputError                      never      of what a command prints, not of its work

`judge_retry` answers for any error, those of others included; `is_passing` and `is_lasting` are its two questions.
Nothing else decides what is tried again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from miniplm.foreign_errors import is_machines_fault, judge_foreign_error

Retry = Literal["never", "elsewhere", "here"]
"""Where another try of the unchanged work may end otherwise."""


class ConfigError(ValueError):
    """A configuration that cannot be run: the field, the rule and the value got."""

    retry: ClassVar[Retry] = "never"


class MiniplmError(Exception):
    """An artifact is not in the state that a step needs."""

    retry: ClassVar[Retry] = "never"


class SourceError(MiniplmError):
    """A source file cannot be read as the configuration says."""


class DamagedSourceError(SourceError):
    """What a file holds is at fault: nothing made of it can be of use, and mending it makes it another corpus."""


class NotOneFileError(DamagedSourceError):
    """A zip archive of more files than one, or of none, or of one that only a password opens."""


class TokenizerError(MiniplmError):
    """A tokenizer is missing, has no end-of-document token, or does not match another one."""


class ModelError(MiniplmError):
    """A model folder is missing, truncated, unsafe, or holds weights that are not finite."""


class CorpusError(MiniplmError):
    """A prepared corpus is missing, incomplete or damaged."""


class EncodingProcessError(MiniplmError):
    """A process that tokenises died and gave no reason; what was prepared is kept, and another try goes on from there."""

    retry: ClassVar[Retry] = "here"


class DerivedError(MiniplmError):
    """A derived set (sequences encoded anew, or written by the teacher) is missing, incomplete or damaged, or cannot be made."""


class ScoreError(MiniplmError):
    """A shard could not be scored for a reason of its own, such as a non-finite score."""


class DeviceError(MiniplmError):
    """A GPU stopped answering; what it computed is not kept. Another try goes to another one."""

    retry: ClassVar[Retry] = "here"


class NoDeviceError(MiniplmError):
    """The machine lacks the GPU that was asked for, or it does not answer any more."""

    retry: ClassVar[Retry] = "elsewhere"


class FidelityError(MiniplmError):
    """A dtype changes what is selected by more than the configuration allows, or it was not measured yet."""


class ProxyError(MiniplmError):
    """A proxy has too few scores to learn from, or predicts too badly to select by."""


class RunFailedError(Exception):
    """Work failed for a reason that is in no input; what is finished is kept."""

    retry: Retry = "elsewhere"


class StoppedError(Exception):
    """Work was given up because its run was cancelled or this process was told to end; nothing of it is published."""

    retry: ClassVar[Retry] = "elsewhere"


class OutputError(OSError):
    """What a command prints could not be written."""

    retry: ClassVar[Retry] = "never"


class ScoreJoinError(MiniplmError):
    """Candidate sequences and the scores of the two models do not match one to one."""


class TrainingError(MiniplmError):
    """A model cannot be trained: no data, or a loss that is not finite."""


class ScalingError(MiniplmError):
    """Held-out losses from which no scaling law can be fitted: too few, or not falling."""


class TrainingProcessError(TrainingError):
    """A process of a training died and gave no reason; what it had saved is kept, and another try goes on from there."""

    retry: ClassVar[Retry] = "here"


class EvaluationError(MiniplmError):
    """A model cannot be measured by a task: no data, no accuracy, or no memory."""


class RunError(MiniplmError):
    """A run has no record, or one that cannot be read."""


class StorageError(MiniplmError):
    """The storage root cannot be read or written."""

    retry: ClassVar[Retry] = "elsewhere"


class StorageUnavailableError(StorageError):
    """The storage root could not be reached, or kept failing, for as long as is tried; it may answer another time."""

    retry: ClassVar[Retry] = "here"


class DamagedFileError(StorageError):
    """A file at the storage root was read, and its content is not what it has to be."""

    retry: ClassVar[Retry] = "never"


class VersionError(MiniplmError):
    """A worker has another version of this package than the run that gave it work."""


class PrefectApiError(MiniplmError):
    """The Prefect server does not answer, refuses the credentials, or does not know what a run on a work pool needs."""

    retry: ClassVar[Retry] = "elsewhere"


class PoolWorkError(MiniplmError):
    """A flow run on a work pool that this run depends on failed, was cancelled, or died too often."""


class BusyError(MiniplmError):
    """Another process works on the same artifact."""


class MachineError(MiniplmError):
    """The machine or its settings lack what a command needs: a folder to write to, a proxy that can be used, a free port."""


# At the root of the tree.
_OURS = (ConfigError, MiniplmError, RunFailedError, StoppedError, OutputError)


def list_offenders(offenders: Iterable[object], total: int | None = None, most: int = 10) -> str:
    """The first `most` offenders and the total, for an error message: `"3, 5, 8, ... (12 in all)"`."""
    items = [str(offender) for offender in offenders]
    total = len(items) if total is None else total
    shown = ", ".join(items[:most])
    return shown if total <= min(most, len(items)) else f"{shown}, ... ({total} in all)"


# Errors of the operating system about a path, which say the same in this process again; they may come without a number.
_PATH_ERRORS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_POINTER_START = b"version https://git-lfs"
_ORDER: tuple[Retry, ...] = ("never", "elsewhere", "here")


def judge_retry(error: BaseException) -> Retry:
    """Where another try of the work that ended with this error, unchanged, may end otherwise."""
    if isinstance(error, _OURS):
        return error.retry
    # As lasting as the most lasting of them: another try would meet that one again.
    if isinstance(error, BaseExceptionGroup):
        return min(map(judge_retry, error.exceptions), key=_ORDER.index)
    judged = judge_foreign_error(error)
    if judged is not None:
        return judged
    # Libraries raise lost connections without a number too. What else is raised may be a fault of this machine's set-up.
    has_no_number = isinstance(error, OSError) and error.errno is None and not isinstance(error, _PATH_ERRORS)
    return "here" if has_no_number else "elsewhere"


def is_passing(error: BaseException) -> bool:
    """Whether this process should try the same work again in a moment."""
    return judge_retry(error) == "here"


def is_lasting(error: BaseException) -> bool:
    """Whether no other try, by no other worker, can end otherwise: an input has to change first."""
    return judge_retry(error) == "never"


def find_error_class(name: str) -> type[Exception] | None:
    """This package's error class of that name, such as stands before a message; None where there is none."""
    kind = globals().get(name)
    return kind if isinstance(kind, type) and issubclass(kind, _OURS) else None


@contextmanager
def reading_users_file(
    path: Path | str, problem: str, next_step: str, raises: type[MiniplmError] | type[ConfigError]
) -> Iterator[None]:
    """Turns whatever a library raises while it reads a user's file into one of our errors: file, problem, reason, next step.

    Every call into a library that reads what users give us (transformers, tokenizers, safetensors, PyArrow, lm-eval) stands in such
    a block: their errors are of any class, a Rust panic included, which is no `Exception`. What is no fault of the file goes
    through as it is: our own errors, memory that ran out, a full disk, a lost connection.

        with reading_users_file(folder, "holds no tokenizer that can be loaded", "copy its files again", TokenizerError):
            AutoTokenizer.from_pretrained(folder)
    """
    try:
        yield
    except (MiniplmError, ConfigError, RunFailedError, StoppedError):
        raise
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of pyo3: a BaseException that cannot be imported by name
        if (not isinstance(error, Exception) and not is_panic) or is_machines_fault(error):
            raise
        refuse_pointer(path, raises)
        raise raises(f"{path} {problem} ({describe_reason(error)}); {next_step}") from error


def refuse_pointer(path: Path | str, raises: type[MiniplmError] | type[ConfigError]) -> None:
    """Raises where a file is a pointer, as a clone without git-lfs leaves it."""
    if os.path.isfile(path) and os.access(path, os.R_OK):
        with open(path, "rb") as file:
            if file.read(len(_POINTER_START)) == _POINTER_START:
                raise raises(
                    f"{path} is a pointer of git-lfs and not the file itself; run `git lfs pull` in {os.path.dirname(path) or '.'}"
                )


def describe_reason(error: BaseException) -> str:
    """An error's class and its message on one line, at most 300 characters: libraries often say what is wrong in the second line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
