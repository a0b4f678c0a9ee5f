"""A training in a process group of its own: watched while it runs, ended with whoever waits for it."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from miniplm.errors import TrainingProcessError
from miniplm.models.devices import free_cached_memory
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import TrainingManifest
from miniplm.storage.root import Storage
from miniplm.training.loop import train_model
from miniplm.training.processes.count import count_processes, find_inline_reason
from miniplm.training.processes.group import TrainingProcesses
from miniplm.training.processes.job import make_job
from miniplm.training.processes.messages import Failure, Finished, Hello, LogLine, Moment, decode_progress, rebuild_error
from miniplm.training.recipe import TrainingPlan
from miniplm.training.records import find_training

_log = logging.getLogger("miniplm")

# Processes have so long to end by themselves once one of them has failed, or all have finished.
_PARTING_SECONDS = 10.0
# As `multiprocessing` does it: the modules of the new process are those of this one, wherever they lie.
_MAIN = "import sys; sys.path[:] = {path!r}; from miniplm.training.processes.main import main; main()"


def launch_training(
    storage: Storage,
    plan: TrainingPlan,
    on_progress: ProgressCallback = ignore_progress,
    launcher: Literal["process", "inline"] = "process",
) -> TrainingManifest:
    """As `train_model`, in one process or several (by torchrun) that are started for it, or `inline`, in this one.

    When this returns or raises, for whatever reason, the processes are gone; when this process is killed they end too,
    within a second. A training is inline as well where the storage root is in this process' memory.

    Raises what `train_model` raises, as it was raised there; `TrainingProcessError` where a process died, `ConfigError`
    for more processes than there can be.
    """
    manifest = find_training(storage, plan.training_id)
    if manifest is not None:
        return manifest
    inline_reason = find_inline_reason(launcher, storage.root)
    num_processes = count_processes(plan.config, plan.device, inline_reason)
    if inline_reason is not None:
        return train_model(storage, plan, on_progress)
    free_cached_memory()  # what this process does not use of a GPU's memory, the training may need
    # Paths of sockets are short (107 bytes), which the folder for temporary files may not be.
    where = "/tmp" if len(tempfile.gettempdir()) > 60 else None
    with tempfile.TemporaryDirectory(prefix="miniplm-", dir=where, ignore_cleanup_errors=True) as folder:
        job = Path(folder, "job.json")
        job.write_text(make_job(storage, plan, num_processes).model_dump_json(), encoding="utf-8")
        with TrainingProcesses(_make_command(job, num_processes), str(Path(folder, "socket"))) as processes:
            ends = _watch(processes, num_processes, on_progress)
    manifest = find_training(storage, plan.training_id)
    if manifest is None:
        raise _explain(plan, processes, num_processes, ends)
    return manifest


def _make_command(job: Path, num_processes: int) -> list[str]:
    # -P: whatever the working folder holds is no module of ours.
    command = [sys.executable, "-P", "-c", _MAIN.format(path=sys.path), str(job), str(num_processes)]
    if num_processes == 1:
        return command
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [*torchrun, "--nproc-per-node", str(num_processes), "--max-restarts", "0", "--no-python", *command]


@dataclass(frozen=True)
class _End:
    """How a process ended that has not finished: with an error of its own, or with none."""

    rank: int
    pid: int
    failure: Failure | None


def _watch(processes: TrainingProcesses, num_processes: int, on_progress: ProgressCallback) -> list[_End]:
    """Passes on what the processes say until they have ended; gives those that have not finished, as they ended one by one."""
    pids: dict[int, int] = {}
    finished: set[int] = set()
    ends: list[_End] = []
    for rank, message in processes.listen():
        if isinstance(message, Hello):
            pids[rank] = message.pid
        elif isinstance(message, Moment):
            on_progress(decode_progress(message))
        elif isinstance(message, LogLine):
            _log.log(message.level, "%s%s", f"process {rank}: " if rank else "", message.text)
        elif isinstance(message, Finished):
            finished.add(rank)
        elif rank not in finished and rank not in {end.rank for end in ends}:
            ends.append(_End(rank, pids[rank], message))
        if ends or len(finished) == num_processes:
            processes.end_within(_PARTING_SECONDS)
    return ends


def _explain(plan: TrainingPlan, processes: TrainingProcesses, num_processes: int, ends: list[_End]) -> Exception:
    """The error of a training that is not finished, now that all its processes have ended."""
    failures = [end.failure for end in ends if end.failure is not None]
    # What is wrong with an artifact is the reason; that the connection to another process broke is what follows from it.
    named = [failure for failure in failures if failure.error != "RunFailedError"]
    killed = [end for end in ends if processes.exit_codes.get(end.pid, 0) < 0 and end.failure is None]
    if named or (failures and not killed and ends[0].failure is not None):
        return rebuild_error((named or failures)[0])
    lost = [*killed, *(end for end in ends if end.failure is None)]
    pid = lost[0].pid if lost else processes.leader_pid
    which = f"process {lost[0].rank} of {num_processes}" if lost and num_processes > 1 else "its process"
    message = f"training {plan.training_id}: {which} (pid {pid}) {_describe_exit(processes.exit_codes.get(pid))}. "
    if num_processes > 1:
        message += "All of them are stopped. "
    message += "Run the same command again: it goes on from the last checkpoint"
    if processes.last_lines:
        message += "\nThe last it said:" + "".join(f"\n  {line}" for line in processes.last_lines)
    return TrainingProcessError(message)


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "ended and said nothing"
    if code >= 0:
        return f"ended with exit code {code} and said nothing"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = ", as the kernel does where memory runs out; `dmesg` tells" if -code == signal.SIGKILL else ""
    return f"was ended by signal {-code} ({name}{hint})"
