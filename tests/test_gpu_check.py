"""What runs on a GPU machine for half an hour must run there at the first try: rehearsed on a CPU, and without the fleet's packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_check import Step, main, plan_stages, run_step

ROOT = Path(__file__).resolve().parents[1]
STAGE_SECONDS = 480
# What a machine that only computes need not have: Prefect and the server's packages, DuckDB, S3, lm-eval.
ABSENT = ("prefect", "fastapi", "duckdb", "s3fs", "aiobotocore", "botocore", "lm_eval", "jsonschema")


def test_every_stage_ends_within_eight_minutes() -> None:
    for stage, steps in plan_stages(Path("rows.jsonl"), rehearse=False).items():
        assert sum(step.limit_seconds for step in steps) <= STAGE_SECONDS, stage


def test_a_step_that_hangs_is_killed_at_its_limit_with_all_that_it_started(tmp_path: Path) -> None:
    # A module of the standard library that waits for a request: the profile of a kernel that never ends.
    record = run_step(Step("hangs", 1, ("http.server", "--bind", "127.0.0.1", "0")), tmp_path)
    assert record["exit_code"] is None
    assert 1 <= record["seconds"] < 30


_RUN_EACH = """
import json, sys
from pathlib import Path
from benchmarks.gpu_check import Step, run_step

STEPS = (
    Step("works", 60, ("this",)),
    Step("fails", 60, ("json.tool", "/nonexistent")),
    Step("raises", 60, ("no_such_module",)),
    Step("hangs", 1, ("http.server", "--bind", "127.0.0.1", "0")),
)
ends = {}
for is_warm in (False, True):
    folder = Path(sys.argv[1], str(is_warm))
    folder.mkdir()
    ends[str(is_warm)] = {step.name: run_step(step, folder, is_warm)["exit_code"] for step in STEPS}
print(json.dumps(ends))
"""


def run_script(script: str, folder: Path) -> str:
    """What a script prints, run from the root of this checkout."""
    result = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout


def test_a_fork_ends_as_the_interpreter_would(tmp_path: Path) -> None:
    wanted = {"works": 0, "fails": 2, "raises": 1, "hangs": None}
    said = {
        "works": "Beautiful is better than ugly.",
        "fails": "No such file",
        "raises": "No module named no_such_module",
        "hangs": "",
    }
    # Forks of a process of its own, as of the command: this one may have threads of other tests, which no fork has.
    ends = run_script(_RUN_EACH, tmp_path)
    for is_warm in ("False", "True"):
        assert json.loads(ends)[is_warm] == wanted
        for name, told in said.items():
            assert told in (tmp_path / is_warm / f"{name}.log").read_text()


def test_a_failed_step_is_told_and_the_exit_code_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    steps = {"tests": [Step("fails", 60, ("json.tool", "/nonexistent")), Step("works", 60, ("this",))]}
    monkeypatch.setattr("benchmarks.gpu_check.plan_stages", lambda rows, rehearse: steps)
    assert main(["tests", "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "== fails: FAILED" in said
    assert "== works: ok" in said
    assert "1 of 2 steps ended well; not: fails" in said
    assert [json.loads(line)["step"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()] == ["fails", "works"]


def test_a_step_whose_engines_are_not_installed_is_skipped_by_name(tmp_path: Path, monkeypatch, capsys) -> None:
    steps = {
        "engines": [
            Step("engines", 60, ("this",), ("no_such_engine", "nor_this")),
            Step("works", 60, ("this",), ("nor_this", "json")),
        ]
    }
    monkeypatch.setattr("benchmarks.gpu_check.plan_stages", lambda rows, rehearse: steps)
    assert main(["engines", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "== engines: skipped, none of no_such_engine, nor_this is installed" in said
    assert "1 of 1 steps ended well; skipped: engines" in said
    assert json.loads((tmp_path / "steps.jsonl").read_text().splitlines()[0])["skipped"]


def test_every_stage_runs_on_a_cpu_with_tiny_models_and_without_the_packages_of_a_fleet(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))"
    )  # as if they were not there
    variables = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [str(ROOT / "scripts" / "gpu_check.sh"), "--rehearse", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**variables, "HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["side"] for row in rows if row["benchmark"] == "training"} == {
        "published",
        "published-fp16",
        "ours-1",
        "ours-auto",
        "trainer",
    }
    assert {row["benchmark"] for row in rows} == {"scoring", "scoring-head", "training", "scoring-engines"}
    # Each way to make NLL of the head with each number of tokens, and each size of a batch.
    measured = {(row["kernel"], row["num_tokens"]) for row in rows if row["benchmark"] == "scoring-head" and "seconds" in row}
    kernels = {"bare matmul", "tiles", "compiled", "compiled-small", "fp8-tiles", "fp8-compiled", "compiled 2048x4096"}
    assert {(kernel, number) for kernel in kernels for number in (96, 128)} <= measured
    assert {128, 256} <= {row["engine"]["tokens_per_batch"] for row in rows if row.get("side") == "ours" and "engine" in row}


def test_the_head_of_the_reference_is_swept_over_variants_tiles_and_batches() -> None:
    stages = plan_stages(Path("rows.jsonl"), rehearse=False)
    tune = {step.name: " ".join(step.arguments) for step in stages["tune"]}
    assert "--model qwen-104m" in tune["tune-head"]  # of width 512
    assert "--heads --sides none --head-tokens 16384,32768,65536" in tune["tune-head"]
    assert "--tokens-per-batch 16384,32768,131072" in tune["tune-reference"]
