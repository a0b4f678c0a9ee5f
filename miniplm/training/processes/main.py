"""The main of a training's process: reads its job, trains, and ends at once when the process that started it is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path

from miniplm.progress import Progress, ignore_progress
from miniplm.records.manifests import Record
from miniplm.storage.root import Storage
from miniplm.training.processes.messages import Finished, Hello, LogLine, describe_error, encode_message, encode_progress
from miniplm.training.processes.signals import restore_signals

SOCKET = "socket"


class Channel:
    """The way to the process that started this one. Its end is the end of this process, and of all that it has started."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(folder / SOCKET))
        self.send(Hello(rank=rank, pid=os.getpid()))
        threading.Thread(target=self._end_with_parent, name="end-with-parent", daemon=True).start()

    def send(self, message: Record) -> None:
        with self._lock:
            self._socket.sendall(encode_message(message))

    def report(self, progress: Progress) -> None:
        self.send(encode_progress(progress))

    def _end_with_parent(self) -> None:
        # Nothing is ever sent this way: what ends the wait is the end of the other side, however it ended.
        with contextlib.suppress(OSError):
            self._socket.recv(1)
        shutil.rmtree(self._folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)


class _ChannelHandler(logging.Handler):
    """Gives the library's log to the channel."""

    def __init__(self, channel: Channel, level: int) -> None:
        super().__init__(level)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(LogLine(level=record.levelno, text=record.getMessage()))


def main() -> None:
    """Trains what a job file says; the arguments are its path and the number of processes, torchrun tells which of several this is."""
    path, num_processes = Path(sys.argv[1]), int(sys.argv[2])
    restore_signals()
    # One alone was not started by torchrun, whatever other launcher's variables it has inherited.
    rank, local_rank = (int(os.environ[name]) if num_processes > 1 else 0 for name in ("RANK", "LOCAL_RANK"))
    try:
        channel = Channel(path.parent, rank)
    except OSError:  # the process that started this one is gone already
        sys.exit(1)
    log = logging.getLogger("miniplm")
    log.setLevel(logging.INFO)
    # What all processes have to say, one says; of the others only what is wrong matters.
    log.addHandler(_ChannelHandler(channel, logging.INFO if rank == 0 else logging.WARNING))
    try:
        _train(path, channel, rank, local_rank, num_processes)
    except BaseException as error:
        channel.send(describe_error(error))
        sys.exit(1)
    channel.send(Finished())


def _train(path: Path, channel: Channel, rank: int, local_rank: int, num_processes: int) -> None:
    # Read when CUDA starts: without it products of matrices there may differ from run to run in their last bits.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    from miniplm.models.devices import device_errors
    from miniplm.training.loop import train_model
    from miniplm.training.parallel import ProcessGroup
    from miniplm.training.processes.job import TrainingJob

    job = TrainingJob.model_validate_json(path.read_bytes())
    torch.set_num_threads(job.num_threads)
    plan = job.make_plan()
    group = ProcessGroup(rank, num_processes, local_rank, plan.config.sharding)
    with device_errors(group.device(plan.device), f"training {plan.training_id}"):
        train_model(Storage(job.storage), plan, channel.report if group.is_first else ignore_progress, group)
