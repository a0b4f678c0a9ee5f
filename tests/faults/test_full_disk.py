"""A disk that is really full: a small tmpfs in a mount namespace of the test's own."""

from __future__ import annotations

import shutil
import subprocess
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


# The run with little space, what it left, then the same run with enough.
SCRIPT = """
mount -t tmpfs -o size={size} tmpfs {data}
{miniplm} run {config} > {out}/first.log 2>&1; echo $? > {out}/first.code
find {data} -type f > {out}/left.txt
find {data} -name 'shard-*' -path '*scores*' -printf '%P %i %T@\\n' | sort > {out}/before.txt
mount -o remount,size=200m {data}
{miniplm} run {config} > {out}/second.log 2>&1; echo $? > {out}/second.code
find {data} -name 'shard-*' -path '*scores*' -printf '%P %i %T@\\n' | sort > {out}/after.txt
"""


# In the shards of the corpus, in the scores, in the reference's first checkpoint.
@pytest.mark.parametrize("size", ["120k", "600k", "3m"])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(tmp_path, prefect_server, size):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    if not can_mount(data):
        pytest.skip("no mount namespace can be made here")
    config = make_tiny_run(tmp_path)
    script = SCRIPT.format(size=size, data=data, miniplm=MINIPLM, config=config, out=out)
    subprocess.run(["unshare", "-rm", "bash", "-c", script], env=environment(prefect_server), check=True, timeout=300)
    first = (out / "first.log").read_text()
    assert (out / "first.code").read_text().strip() == "2", first
    assert "no space left" in first.lower()
    assert "run the same command again" in first
    assert "Traceback" not in first
    left = (out / "left.txt").read_text().splitlines()
    assert not [path for path in left if Path(path).name.startswith(".tmp-")], left
    assert (out / "second.code").read_text().strip() == "0", (out / "second.log").read_text()
    finished = {line.split()[0]: line for line in (out / "after.txt").read_text().splitlines()}
    for line in (out / "before.txt").read_text().splitlines():
        name = line.split()[0]
        if name.endswith(".json"):
            assert finished[name] == line, "a finished shard was scored again"
