"""Every error that a user can mend, in two families.

`ConfigError` (a `ValueError`) is about what the user wrote; the subclasses of `MiniplmError` are about the
state of artifacts: sources, models, shards, scores, storage. Both are reported as one message (what failed,
where, the value got, what is allowed, the next step) and end the command with exit code 2. Anything else is
a failed run: exit code 1.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class ConfigError(ValueError):
    """A configuration that cannot be run: the field, the rule and the value got."""


class MiniplmError(Exception):
    """An artifact is not in the state that a step needs."""


class SourceError(MiniplmError):
    """A source file cannot be read as the configuration says."""


class TokenizerError(MiniplmError):
    """A tokenizer is missing, has no end-of-document token, or does not match another one."""


class ModelError(MiniplmError):
    """A model folder is missing, truncated, unsafe, or holds weights that are not finite."""


class CorpusError(MiniplmError):
    """A prepared corpus is missing, incomplete or damaged."""


class DerivedError(MiniplmError):
    """A derived set (sequences encoded anew, or written by the teacher) is missing, incomplete or damaged, or cannot be made."""


class ScoreError(MiniplmError):
    """A shard could not be scored for a reason of its own, such as a non-finite score."""


class DeviceError(MiniplmError):
    """A GPU stopped answering; what it computed is not kept. Another try goes to another one."""


class NoDeviceError(MiniplmError):
    """No GPU of the machine, or not the one asked for, answers any more."""


class FidelityError(MiniplmError):
    """A dtype changes what is selected by more than the configuration allows, or it was not measured yet."""


class RunFailedError(Exception):
    """Work failed for a reason that is in no input; what is finished is kept."""


class ScoreJoinError(MiniplmError):
    """Candidate sequences and the scores of the two models do not match one to one."""


class TrainingError(MiniplmError):
    """A model cannot be trained: no data, or a loss that is not finite."""


class ScalingError(MiniplmError):
    """Held-out losses from which no scaling law can be fitted: too few, or not falling."""


class TrainingProcessError(TrainingError):
    """A process of a training died without a word of its own; what it had saved is kept, and another try goes on from there."""


class EvaluationError(MiniplmError):
    """A model cannot be measured by a task: no data, no accuracy, or no memory."""


class RunError(MiniplmError):
    """A run has no record, or one that cannot be read."""


class StorageError(MiniplmError):
    """The storage root cannot be read or written."""


class StorageUnavailableError(StorageError):
    """The storage root could not be reached, or kept failing, for as long as is tried; another time it may be there."""


class DamagedFileError(StorageError):
    """A file at the storage root was read, and its content is not what it has to be."""


class VersionError(MiniplmError):
    """A worker has another version of this package than the run that gave it work."""


class PrefectApiError(MiniplmError):
    """The Prefect server does not answer, refuses the credentials, or does not know what a run on a work pool needs."""


class PoolWorkError(MiniplmError):
    """A flow run on a work pool that this run depends on failed, was cancelled, or died too often."""


class BusyError(MiniplmError):
    """Another process works on the same artifact."""


class MachineError(MiniplmError):
    """The machine or its settings lack what a command needs: a folder to write to, a proxy that can be used, a free port."""


def list_offenders(offenders: Iterable[object], total: int | None = None, most: int = 10) -> str:
    """The first `most` offenders and the total, for an error message: `"3, 5, 8, ... (12 in all)"`."""
    items = [str(offender) for offender in offenders]
    total = len(items) if total is None else total
    shown = ", ".join(items[:most])
    return shown if total <= min(most, len(items)) else f"{shown}, ... ({total} in all)"


# The machine's or the network's state, not the file's: another try may end otherwise, and no other file would help.
_MACHINE_ERRNOS = frozenset(
    {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR, errno.EBUSY}
    | {errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.EROFS}
    | {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN}
)


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
    except (MiniplmError, ConfigError, RunFailedError):
        raise
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of pyo3: a BaseException that cannot be imported by name
        if (not isinstance(error, Exception) and not is_panic) or _is_machines_fault(error):
            raise
        raise raises(f"{path} {problem} ({describe_reason(error)}); {next_step}") from error


def _is_machines_fault(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return True
    return isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS


def describe_reason(error: BaseException) -> str:
    """An error's class and its message on one line, at most 300 characters: libraries often say what is wrong in the second line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
