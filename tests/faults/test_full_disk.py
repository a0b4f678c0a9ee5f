"""A disk that is really full: a small tmpfs in a mount namespace of the test's own."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.command_line import MINIPLM, environment
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


# Where the disk is full: in the shards of the corpus, in the scores, in the reference's first checkpoint.
SIZES = ("120k", "600k", "3m")

# The run on a disk that is too small, made larger time after time, at last large enough; and what each has left.
SCRIPT = """
mount -t tmpfs -o size=120k tmpfs {data}
for size in {sizes} 200m; do
    mount -o remount,size=$size {data}
    {miniplm} run {config} > {out}/$size.log 2>&1; echo $? > {out}/$size.code
    find {data} -type f > {out}/$size.left
    find {data} -name 'shard-*' -path '*scores*' -printf '%P %i %T@\\n' | sort > {out}/$size.scores
done
"""


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(tmp_path, prefect_server):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    if not can_mount(data):
        pytest.skip("no mount namespace can be made here")
    config = make_tiny_run(tmp_path, students=[])
    script = SCRIPT.format(sizes=" ".join(SIZES), data=data, miniplm=MINIPLM, config=config, out=out)
    subprocess.run(["unshare", "-rm", "bash", "-c", script], env=environment(prefect_server), check=True, timeout=600)
    scores: list[dict[str, str]] = []
    for size in SIZES:
        told = (out / f"{size}.log").read_text()
        assert (out / f"{size}.code").read_text().strip() == "2", told
        assert "no space left" in told.lower()
        assert "run the same command again" in told
        assert "Traceback" not in told
        left = (out / f"{size}.left").read_text().splitlines()
        assert not [path for path in left if Path(path).name.startswith(".tmp-")], left
    assert (out / "200m.code").read_text().strip() == "0", (out / "200m.log").read_text()
    for size in (*SIZES, "200m"):
        lines = (out / f"{size}.scores").read_text().splitlines()
        scores.append({line.split()[0]: line for line in lines if line.split()[0].endswith(".json")})
    for before, after in pairwise(scores):
        assert {name: after[name] for name in before} == before, "a finished shard was scored again"
    # Each disk was full in a stage of its own.
    assert [bool(found) for found in scores] == [False, True, True, True]
    num_shards = [len(found) for found in scores]
    assert num_shards == sorted(num_shards)
