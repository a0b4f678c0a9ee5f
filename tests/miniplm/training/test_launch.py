"""A training in processes of its own is the training in this one, and leaves no process behind, however it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import torch

from miniplm import layout
from miniplm.errors import (
    BusyError,
    ConfigError,
    DeviceError,
    MiniplmError,
    RunFailedError,
    StorageError,
    TrainingError,
    TrainingProcessError,
    judge_retry,
)
from miniplm.progress import Progress
from miniplm.records.manifests import CheckpointMetrics, TrainingManifest
from miniplm.storage.root import Storage
from miniplm.training.checkpoints import read_metrics
from miniplm.training.loop import train_model
from miniplm.training.processes import group as workers
from miniplm.training.processes import launch
from miniplm.training.processes.job import TrainingJob, make_job
from miniplm.training.processes.launch import launch_training
from miniplm.training.processes.messages import Failure, decode_message, describe_error, encode_message, rebuild_error
from miniplm.training.recipe import TrainingPlan
from tests.miniplm.made_trainings import make_plan, make_selection, make_training_corpus

# Stands for a training's process: connects, says hello as process 0, and then does as it is told.
STAND_IN = """
import json, os, signal, socket, sys, time
from pathlib import Path
channel = socket.socket(socket.AF_UNIX)
channel.connect(str(Path(sys.argv[1]).parent / "socket"))
def say(**message):
    channel.sendall(json.dumps(message).encode() + b"\\n")
def progress(done):
    say(kind="progress", key="train x", done=done, total=9, unit="steps", detail="d")
say(kind="hello", rank=0, pid=os.getpid())
"""


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """Lists the processes started in the test, not those of the session before it (servers of other tests), nor theirs."""
    earlier = set(psutil.Process().children())

    def started() -> list[psutil.Process]:
        mine = [process for process in psutil.Process().children() if process not in earlier]
        return mine + [descendant for process in mine for descendant in process.children(recursive=True)]

    return started


@pytest.fixture
def stand_in(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Launches a training whose process is a stand-in that runs a piece of Python."""
    monkeypatch.setattr(workers, "_GRACE_SECONDS", 1.0)

    def start(code: str, on_progress: Callable[[Progress], None] = lambda progress: None, processes: int = 1) -> TrainingManifest:
        monkeypatch.setattr(launch, "_make_command", lambda job, _: [sys.executable, "-c", STAND_IN + code, str(job)])
        return launch_training(
            storage, make_plan(make_training_corpus(storage), processes=processes, micro_batch_size=1), on_progress
        )

    return start


def history(storage: Storage, manifest: TrainingManifest) -> list[CheckpointMetrics]:
    return [row.model_copy(update={"seconds": 0.0}) for row in read_metrics(storage, manifest.training_id, manifest.num_steps)]


def list_living(pids: list[int]) -> list[int]:
    """Those that still run; a zombie that nobody has asked after does not, once its last thread has let go of its files."""
    living = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE or len(os.listdir(f"/proc/{pid}/task")) > 1:
                living.append(pid)
    return living


def wait_until_gone(pids: list[int], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while list_living(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list_living(pids) == []


def test_a_process_of_its_own_trains_the_same_to_the_last_bit(tmp_path: Path, children: Callable[[], list[psutil.Process]]) -> None:
    here, there = Storage(str(tmp_path / "here")), Storage(str(tmp_path / "there"))
    wanted = launch_training(here, make_plan(make_training_corpus(here)), launcher="inline")
    moments: list[Progress] = []
    plan = make_plan(make_training_corpus(there))
    manifest = launch_training(there, plan, moments.append)
    assert manifest.weights_digest == wanted.weights_digest
    assert history(there, manifest) == history(here, wanted)
    assert {moment.key for moment in moments} == {f"train {plan.training_id}"}
    assert [(moment.done, moment.total, moment.unit) for moment in moments] == [(done, 6, "steps") for done in range(7)]
    assert moments[-1].detail.startswith(f"loss {wanted.final_loss:.3f}, ")
    assert children() == []
    moments.clear()
    started = time.perf_counter()
    assert launch_training(there, plan, moments.append) == manifest, "what is finished is not done again"
    assert time.perf_counter() - started < 1.0
    assert moments == []


def launch_and_die(root: str, plan: TrainingPlan, step: int) -> None:
    """In a process of its own: starts a training, and kills itself after a step, having told which processes it had."""

    def on_progress(progress: Progress) -> None:
        if progress.done == step:
            pids = [process.pid for process in psutil.Process().children(recursive=True)]
            Path(root, "pids.json").write_text(json.dumps(pids))
            os.kill(os.getpid(), signal.SIGKILL)

    launch_training(Storage(root), plan, on_progress)


def run_until_killed(storage: Storage, plan: TrainingPlan, step: int) -> list[int]:
    """The processes of a training whose caller was killed after a step; they are gone."""
    caller = multiprocessing.get_context("fork").Process(target=launch_and_die, args=(storage.root, plan, step))
    caller.start()
    caller.join(300)
    assert caller.exitcode == -signal.SIGKILL
    pids: list[int] = json.loads(Path(storage.root, "pids.json").read_text())
    wait_until_gone(pids)
    return pids


def test_killed_it_takes_its_training_along_and_resumed_it_is_as_if_nothing_was(tmp_path: Path) -> None:
    # Steps of many passes, so that the kill comes long before the end.
    settings = {"steps": 8, "batch_size": 10, "micro_batch_size": 1}
    undisturbed, storage = Storage(str(tmp_path / "undisturbed")), Storage(str(tmp_path / "killed"))
    wanted = train_model(undisturbed, make_plan(make_training_corpus(undisturbed), **settings))
    plan = make_plan(make_training_corpus(storage), **settings)
    assert len(run_until_killed(storage, plan, 5)) == 1
    assert not storage.exists(layout.training_manifest(plan.training_id)), "the training was over before it was killed"
    done: list[float] = []
    manifest = train_model(storage, plan, lambda progress: done.append(progress.done))
    assert done[0] in (4, 6)
    assert manifest.weights_digest == wanted.weights_digest
    assert history(storage, manifest) == history(undisturbed, wanted)


def test_several_processes_train_one_model_and_end_with_whoever_has_started_them(tmp_path: Path) -> None:
    settings = {"steps": 8, "batch_size": 10, "micro_batch_size": 1}
    undisturbed, storage = Storage(str(tmp_path / "undisturbed")), Storage(str(tmp_path / "killed"))
    wanted = train_model(undisturbed, make_plan(make_training_corpus(undisturbed), **settings))
    plan = make_plan(make_training_corpus(storage), processes=2, **settings)
    assert plan.training_id == wanted.training_id
    assert len(run_until_killed(storage, plan, 3)) == 3, "torchrun and two processes"
    done: list[float] = []
    manifest = train_model(storage, plan, lambda progress: done.append(progress.done))
    assert done[0] in (2, 4)  # on a busy machine the next checkpoint is published before the kill has its effect
    losses = [[row.loss for row in history(*run)] for run in ((storage, manifest), (undisturbed, wanted))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), BaseException("cancelled"), ValueError("of the watcher")])
def test_an_error_of_whoever_waits_ends_the_processes(
    stand_in: Callable[..., Any], error: BaseException, children: Callable[[], list[psutil.Process]]
) -> None:
    found: list[psutil.Process] = []

    def on_progress(progress: Progress) -> None:
        found.extend(children())
        raise error

    with pytest.raises(type(error)):
        stand_in("progress(1); time.sleep(60)", on_progress)
    assert len(found) == 1
    assert not found[0].is_running()


def test_what_does_not_end_when_told_is_killed_with_all_it_has_started(
    stand_in: Callable[..., Any], children: Callable[[], list[psutil.Process]]
) -> None:
    found: list[int] = []

    def on_progress(progress: Progress) -> None:
        found.extend(process.pid for process in children())
        raise KeyboardInterrupt

    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.fork()\nif os.getpid() == os.getpgrp(): progress(1)\ntime.sleep(60)"
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        stand_in(deaf, on_progress)
    assert len(found) == 2
    wait_until_gone(found)
    assert 1.0 <= time.monotonic() - started < 20.0


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        ({"error": "TrainingError", "text": "3 steps in a row"}, TrainingError, "^3 steps in a row$"),
        ({"error": "ConfigError", "text": "a field"}, ConfigError, "^a field$"),
        ({"error": "BusyError", "text": "pid 7"}, BusyError, "^pid 7$"),
        ({"error": "StorageError", "text": "no space left"}, StorageError, "^no space left$"),
        ({"error": "OSError", "text": "gone", "errno": 111}, ConnectionRefusedError, "gone"),
        ({"error": "MemoryError", "text": "cannot allocate"}, MemoryError, "cannot allocate"),
        ({"error": "RunFailedError", "text": "KeyError: 'a'", "trace": "line 3"}, RunFailedError, "^KeyError: 'a'\n"),
    ],
)
def test_an_error_of_the_training_is_raised_as_it_was_there(
    stand_in: Callable[..., Any], failure: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        stand_in(f"say(kind='failure', **{failure!r})\nsys.exit(1)")
    assert type(caught.value) is kind
    notes = getattr(caught.value, "__notes__", [])
    assert notes == (["In the process of the training:\nline 3"] if "trace" in failure else [])


def test_a_killed_process_is_told_with_its_signal_its_last_words_and_what_to_do(stand_in: Callable[..., Any]) -> None:
    code = "print('one'); print(); print('two', file=sys.stderr); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(TrainingProcessError) as caught:
        stand_in(code)
    lines = str(caught.value).splitlines()
    assert "was ended by signal 9 (SIGKILL, as the kernel does where memory runs out; `dmesg` tells)" in lines[0]
    assert lines[0].endswith("Run the same command again: it goes on from the last checkpoint")
    assert lines[1] == "The last it said:"
    assert sorted(lines[2:]) == ["  one", "  two"]


@pytest.mark.parametrize("code", ["os._exit(3)", "say(kind='finished'); sys.exit(3)"])
def test_a_process_that_leaves_without_a_training_is_an_error(stand_in: Callable[..., Any], code: str) -> None:
    with pytest.raises(TrainingProcessError, match=r"its process \(pid \d+\) ended with exit code 3 and said nothing"):
        stand_in(code)


def test_a_lost_process_of_several_is_told_and_not_that_the_others_missed_it(stand_in: Callable[..., Any]) -> None:
    code = """
pid = os.fork()
if pid == 0:
    os.setsid()
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(str(Path(sys.argv[1]).parent / "socket"))
    say(kind="hello", rank=1, pid=os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)
print("training")
say(kind="failure", error="RunFailedError", text="RuntimeError: connection closed by peer")
os.waitpid(pid, 0)
print(f"E1125 api.py:984] failed (exitcode: -9) local_rank: 1 (pid: {pid}) of binary: python", flush=True)
print("what torchrun says of itself", flush=True)
sys.exit(1)
"""
    with pytest.raises(TrainingProcessError) as caught:
        stand_in(code, processes=2)
    lines = str(caught.value).splitlines()
    assert "process 1 of 2 (pid " in lines[0]
    assert "was ended by signal 9 (SIGKILL" in lines[0]
    assert "All of them are stopped. Run the same command again" in lines[0]
    assert lines[1:] == ["The last it said:", "  training"]


def test_torchrun_starts_several_and_ends_all_when_one_is_lost(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, children: Callable[[], list[psutil.Process]]
) -> None:
    code = """
rank = int(os.environ["RANK"])
say(kind="hello", rank=rank, pid=os.getpid())
say(kind="log", level=30, text=f"{os.environ['WORLD_SIZE']} {os.environ['LOCAL_RANK']} {os.environ['MASTER_ADDR']} {os.getpid()}")
if rank == 1:
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    program = STAND_IN.replace('say(kind="hello", rank=0, pid=os.getpid())', "") + code
    monkeypatch.setattr(launch, "_MAIN", program.replace("{", "{{").replace("}", "}}"))
    told: list[str] = []
    monkeypatch.setattr(launch._log, "log", lambda level, text, *values: told.append(text % values))
    with pytest.raises(TrainingProcessError, match=r"process 1 of 2 \(pid \d+\) was ended by signal 9 \(SIGKILL") as caught:
        launch_training(storage, make_plan(make_training_corpus(storage), processes=2, micro_batch_size=2))
    lines = sorted(line.removeprefix("process 1: ") for line in told)
    assert [line.rsplit(" ", 1)[0] for line in lines] == ["2 0 127.0.0.1", "2 1 127.0.0.1"]
    assert list_living([int(line.rsplit(" ", 1)[1]) for line in lines]) == []
    assert children() == []
    assert "Traceback" not in str(caught.value)


def test_the_log_of_the_training_is_that_of_the_library(stand_in: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    code = "say(kind='log', level=30, text='a step was skipped'); print('of another library', flush=True); os._exit(1)"
    with caplog.at_level(logging.DEBUG, "miniplm"), pytest.raises(TrainingProcessError):
        stand_in(code)
    told = {(record.name, record.levelno, record.getMessage()) for record in caplog.records}
    assert {("miniplm", logging.WARNING, "a step was skipped"), ("miniplm", logging.DEBUG, "of another library")} <= told


def test_in_line_nothing_is_started(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "TrainingProcesses", None)
    plan = make_plan(make_training_corpus(storage), steps=2)
    assert launch_training(storage, plan, launcher="inline").num_steps == 2
    with pytest.raises(
        ConfigError, match=r"processes is 2, but execution.launcher is inline, which is one process; use processes: auto"
    ):
        launch_training(storage, make_plan(make_training_corpus(storage), processes=2, micro_batch_size=2), launcher="inline")


def test_the_job_is_the_plan_whole(storage: Storage) -> None:
    corpus = make_training_corpus(storage)
    plan = make_plan(corpus, "miniplm", make_selection(storage, corpus, [[0, 3], [1], [2, 8]]), processes=3)
    job = TrainingJob.model_validate_json(make_job(storage, plan, 3).model_dump_json())
    assert job.make_plan() == plan
    assert job.num_threads == max(1, torch.get_num_threads() // 3)
    # A tokenizer of the student's own is for making its derived set, which is there when training starts and has a copy.
    assert {field.name for field in dataclasses.fields(plan)} - {"own_tokenizer"} <= set(TrainingJob.model_fields)
    with pytest.raises(TrainingError, match=rf"training x was to be started, and its job describes {plan.training_id}"):
        job.model_copy(update={"training_id": "x"}).make_plan()


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (TrainingError("a"), "TrainingError"),
        (ConfigError("a"), "ConfigError"),
        (StorageError("a"), "StorageError"),
        (FileNotFoundError(2, "a"), "OSError"),
        (torch.OutOfMemoryError("a"), "MemoryError"),
        (RuntimeError("CUDA error: out of memory, a"), "MemoryError"),
        (KeyError("a"), "RunFailedError"),
        (MiniplmError("a"), "MiniplmError"),
        # What is tried again in the process of the training is tried again where it is told, and nothing else is.
        (DeviceError("a"), "DeviceError"),
        (TimeoutError("a"), "OSError"),
        (FileNotFoundError("a"), "RunFailedError"),
        (aiohttp.ServerDisconnectedError("a"), "RunFailedError"),
    ],
)
def test_errors_go_by_their_names_and_words(error: Exception, name: str) -> None:
    line = encode_message(describe_error(error))
    assert line.endswith(b"}\n")
    failure = decode_message(line)
    assert isinstance(failure, Failure)
    assert failure.error == name
    rebuilt = rebuild_error(failure)
    kinds: dict[str, type[Exception]] = {"MemoryError": MemoryError, "RunFailedError": RunFailedError, "OSError": OSError}
    assert isinstance(rebuilt, kinds.get(name, type(error)))
    assert "a" in str(rebuilt)
    assert judge_retry(rebuilt) == judge_retry(error)
