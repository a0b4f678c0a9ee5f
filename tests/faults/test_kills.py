"""A run that is killed over and over ends with the bytes of one that never was, and redoes at most what was in flight."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from miniplm.storage.root import Storage
from tests.command_line import run_miniplm, start_miniplm
from tests.tiny_runs import FinishedRun

NUM_KILLS = 10


def list_published(data: Path) -> dict[Path, tuple[int, int]]:
    """Files below the storage root under their final names, with what tells a file from one that took its place."""
    files = {}
    # Unlike a glob, this bears files and folders that the run deletes at this moment.
    for folder, _, names in os.walk(data):
        for name in names:
            path = Path(folder) / name
            if not name.startswith(".tmp-") and ".locks" not in path.parts:
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    files[path] = (stat.st_ino, stat.st_mtime_ns)
    return files


def kill_after_progress(command: tuple[str, ...], data: Path, num_files: int, seconds: float, prefect: dict[str, str]) -> bool:
    """Starts the run and kills its process group once `num_files` more files are published; False where it ended first."""
    before = len(list_published(data)) if data.exists() else 0
    process = start_miniplm(*command, prefect=prefect)
    while process.is_alive():
        if data.exists() and len(list_published(data)) >= before + num_files:
            time.sleep(seconds)
            break
        time.sleep(0.03)
    alive = process.is_alive()
    if alive:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return alive


def is_written_by_several(path: Path) -> bool:
    """Whether runs may write the file that this was to become at the same time."""
    names = ("copies.parquet", "copies.json", "overlap.json")
    return bool({"growing", "fingerprints", "contamination"} & set(path.parts)) or path.name.removesuffix(".partial").endswith(
        names
    )


@pytest.mark.slow
def test_killed_ten_times_gives_the_bytes_of_an_undisturbed_run(
    tmp_path: Path, finished_run: FinishedRun, prefect_server: dict[str, str], embedded_prefect: dict[str, str]
) -> None:
    rng = random.Random(20241017)
    undisturbed, data = finished_run.data, tmp_path / "data"
    command = ("run", str(finished_run.config), "--set", f"storage={data}")
    num_all = len(list_published(undisturbed))
    kills = 0
    scores: dict[Path, tuple[int, int]] = {}
    while kills < NUM_KILLS:
        kills += kill_after_progress(
            command, data, rng.randint(1, num_all // 14), rng.random() * 0.1, embedded_prefect if kills == 5 else prefect_server
        )
        done = {path: value for path, value in list_published(data).items() if "scores" in path.parts}
        finished = {path for path in scores if path.with_suffix(".json") in scores and path.with_suffix(".parquet") in scores}
        assert all(done[path] == scores[path] for path in finished), "a finished shard was scored again"
        scores = done
        if len(list_published(data)) >= num_all:
            break
    last = run_miniplm(*command, prefect=prefect_server)
    assert last.returncode == 0, last.stderr
    for kind in ("selections", "scores", "corpora"):
        theirs = {path.relative_to(undisturbed): path.read_bytes() for path in (undisturbed / kind).rglob("*.parquet")}
        ours = {path.relative_to(data): path.read_bytes() for path in (data / kind).rglob("*.parquet")}
        assert theirs
        assert ours == theirs, kind
    manifests = [next(root.glob("selections/*/manifest.json")).read_bytes() for root in (undisturbed, data)]
    assert manifests[0] == manifests[1]
    # What runs may write at the same time is held by none of them: which corpus is the last, and what is found of copies and texts of
    # evaluation. What a dead process left there is cleared away after an hour or a day.
    left = [path for path in data.rglob(".tmp-*") if {"corpora", "selections"} & set(path.parts)]
    assert not [path for path in left if not is_written_by_several(path)]
    for path in left:
        os.utime(path, (0, 0))
    Storage(str(data)).delete_temporary_files("", older_than_seconds=86400.0)
    assert not [path for path in left if path.exists()]
    assert kills == NUM_KILLS
