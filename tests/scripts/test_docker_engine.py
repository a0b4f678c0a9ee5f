"""Where CI starts containers: where an engine answers, with Compose and buildx, and nowhere else. By stand-ins for `docker` and `make`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

ENGINES = {
    "no client": None,
    "no engine": "echo 'Cannot connect to the Docker daemon' >&2; exit 1",
    "no plugins": '[ "$1" = version ]',
    "no buildx": '[ "$1" = version ] || [ "$1 $2" = "compose version" ]',
    "all of it": "exit 0",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_ci_tests_containers_where_an_engine_has_all_that_it_takes(tmp_path: Path, engine: str) -> None:
    for program in ("bash", "dirname", "timeout", "env"):
        found = shutil.which(program)
        assert found
        (tmp_path / program).symlink_to(found)
    for name, script in (("docker", ENGINES[engine]), ("make", f'echo "$@" >>{tmp_path}/made')):
        if script is not None:
            (tmp_path / name).write_text(f"#!{tmp_path}/bash\n{script}\n")
            (tmp_path / name).chmod(0o755)
    command = [str(tmp_path / "bash"), str(ROOT / ".ci" / "run")]
    done = subprocess.run(command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    is_used = engine == "all of it"
    assert (tmp_path / "made").read_text().split() == ["test", "test-containers"][: 1 + is_used]
    assert ("was left out" in done.stdout) != is_used
