"""A disk that is really full: a small tmpfs in a mount namespace of the test's own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.command_line import run_miniplm
from tests.tiny_runs import make_tiny_run


def can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )


# The stages of a run, each with the kB that are left for it and do not suffice: for the corpus' shards, the scores, the reference's first
# checkpoint. By their commands, which need no server; the whole run goes on from there.
STAGES = {("prepare",): 120, ("score", "--model", "teacher"): 60, ("train-reference",): 2000}


@dataclass(frozen=True)
class SmallDisk:
    """A tmpfs over a folder, which only the processes in the mount namespace of `pid` see."""

    pid: int
    folder: Path

    def call(self, *command: str) -> str:
        """What a command prints that sees the disk."""
        inside = ["nsenter", "-t", str(self.pid), "-U", "-m", "--preserve-credentials", *command]
        return subprocess.run(inside, capture_output=True, text=True, check=True).stdout

    def leave(self, num_kb: int) -> None:
        """Makes the disk so large that no more is free."""
        used = int(self.call("du", "--summarize", "--block-size=1k", str(self.folder)).split()[0])
        self.call("mount", "-o", f"remount,size={used + num_kb}k", str(self.folder))

    def list_files(self) -> list[str]:
        return self.call("find", str(self.folder), "-type", "f").splitlines()

    def list_scores(self) -> dict[str, str]:
        """The manifests of scored shards, each with what tells the file from one that took its place."""
        lines = self.call(
            "find", str(self.folder), "-name", "shard-*.json", "-path", "*scores*", "-printf", "%P %i %T@\\n"
        ).splitlines()
        return {line.split()[0]: line for line in lines}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "data"
    folder.mkdir()
    if not can_mount(folder):
        pytest.skip("no mount namespace can be made here")
    script = 'mount -t tmpfs -o size=120k tmpfs "$1" && echo ready && exec sleep 3600'
    holder = subprocess.Popen(["unshare", "-rm", "bash", "-c", script, "-", str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield SmallDisk(holder.pid, folder)
    finally:
        holder.kill()
        holder.wait()


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(
    tmp_path: Path, disk: SmallDisk, prefect_server: dict[str, str]
) -> None:
    config = make_tiny_run(tmp_path, students=[], sequences_per_shard=32)
    scores: list[dict[str, str]] = []
    for stage, num_kb in STAGES.items():
        disk.leave(num_kb)
        told = run_miniplm(*stage, str(config), prefect=prefect_server, namespaces_of=disk.pid)
        assert told.returncode == 2, told.stderr
        assert "no space left" in told.stderr.lower()
        assert "run the same command again" in told.stderr
        assert "Traceback" not in told.stderr
        left = disk.list_files()
        assert not [path for path in left if Path(path).name.startswith(".tmp-")], left
        scores.append(disk.list_scores())
        disk.leave(200_000)
        if stage != list(STAGES)[-1]:
            done = run_miniplm(*stage, str(config), prefect=prefect_server, namespaces_of=disk.pid)
            assert done.returncode == 0, done.stderr
    done = run_miniplm("run", str(config), prefect=prefect_server, namespaces_of=disk.pid)
    assert done.returncode == 0, done.stderr
    scores.append(disk.list_scores())
    assert not list(disk.folder.iterdir()), "the run wrote beside the disk"
    for before, after in pairwise(scores):
        assert {name: after[name] for name in before} == before, "a finished shard was scored again"
    # Each disk was full in a stage of its own.
    assert [bool(found) for found in scores] == [False, True, True, True]
    num_shards = [len(found) for found in scores]
    assert num_shards == sorted(num_shards)
