"""All that wants a GPU, stage by stage: tests of the kernels, and the speeds of the table in docs/gpu.md.

    scripts/gpu_check.sh tests            one stage; each ends within 8 minutes
    scripts/gpu_check.sh                  all of them
    scripts/gpu_check.sh --rehearse       the same commands on a CPU, with models of a toy's size: does it run at all?

Each step is a process of its own with its own limit: one that hangs or crashes costs its own time and nothing else. (In a rehearsal it is
a fork of this one, so that libraries are imported once.) Rows are appended to OUTPUT/rows.jsonl, logs lie beside it; docs/gpu.md says
what a machine needs and how the rows are read.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.limited_process import run_limited
from benchmarks.records import append_rows, format_rows, read_rows

_ROOT = Path(__file__).resolve().parents[1]
_SHOWN_LINES = 14
_TITLES = (
    "what",
    "side",
    "dtype",
    "batch",
    "tokens/s",
    "x published",
    "x Trainer",
    "x ours",
    "of matmul peak",
    "GiB",
    "start-up s",
)
# Packages of other engines that score.
ENGINES = ("vllm", "lm_eval")


@dataclass(frozen=True)
class Step:
    """One process: `arguments` of `python -m`, killed with all that it started after `limit_seconds`.

    It is skipped, and named as skipped, where none of the packages of `any_of` is installed; empty: it needs none.
    """

    name: str
    limit_seconds: int
    arguments: tuple[str, ...]
    any_of: tuple[str, ...] = ()

    def find_reason_to_skip(self) -> str | None:
        if not self.any_of or any(find_spec(package) for package in self.any_of):
            return None
        return f"none of {', '.join(self.any_of)} is installed"


def plan_stages(rows: Path, rehearse: bool) -> dict[str, list[Step]]:
    """The steps of each stage, in the order in which a machine that is there for half an hour is used best."""
    pytest = ("pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", "-rfE")
    timeout = ("--timeout", "150") if find_spec("pytest_timeout") else ()
    reference, teacher, size = ("qwen-tiny", "qwen-tiny", "tiny") if rehearse else ("qwen-104m", "qwen1.5-1.8b", "qwen-200m")
    common = ("--json", str(rows), *(("--device", "cpu") if rehearse else ()))

    def score(name: str, limit: int, model: str, *more: str) -> Step:
        small = ("--sequences", "2", "--length", "64", "--shards", "1", "--vocab-size", "512") if rehearse else ()
        return Step(name, limit, ("benchmarks.scoring", "--model", model, "--repeats", "1", *small, *common, *more))

    def train(name: str, limit: int, *more: str, size: str = size) -> Step:
        small = ("--batch", "2", "--steps", "1", "--length", "64") if rehearse else ()
        return Step(name, limit, ("benchmarks.training", "--size", size, *small, *common, *more))

    small = ("--sequences", "2", "--length", "64", "--vocab-size", "512", "--checked", "0", "--repeats", "1")
    # A rehearsal starts none that may be installed: each takes longer than all else together.
    engines = (
        "--model",
        teacher,
        *(("--sides", "ours,vllm", *small) if rehearse else ("--limit-seconds", "150", "--total-seconds", "440")),
    )
    sides = "published,published-fp16,ours"
    sweep = ("--micro-batch", "1,auto") if rehearse else ("--micro-batch", "8,16,32,64,auto", "--steps", "6")

    def num_sequences(number: int) -> tuple[str, ...]:
        return () if rehearse else ("--sequences", str(number))

    ours = ("--sides", "ours", "--dtypes", "float32" if rehearse else "bfloat16")
    # Beside what `auto` begins with, which the stage `speed` measures.
    of_reference, of_teacher = ("128,256", "128,256") if rehearse else ("16384,32768,131072", "32768,65536")
    head = ("--heads", "--sides", "none", *(("--head-tokens", "96,128", "--head-seconds", "0") if rehearse else ()))
    # Each variant, tile and batch; half a second each.
    batches = () if rehearse else ("--head-tokens", "16384,32768,65536", "--head-seconds", "0.5")
    stages = {
        "tests": [Step("tests", 470, (*pytest, "-m", "gpu", *timeout))],
        "speed": [
            score("speed-reference", 160, reference, "--sides", "published,ours"),
            score("speed-teacher", 310, teacher, "--sides", "published,ours"),
        ],
        "train": [
            train("train", 250, "--sides", sides, *(sweep if rehearse else ())),
            # Alone, since whole logits at 32 sequences may not fit.
            train("train-trainer", 220, "--sides", "trainer", "--trainer-micro-batch", "2" if rehearse else "8"),
        ],
        "tune": [
            score("tune-head", 200, reference, *head, *batches),
            score("tune-reference", 110, reference, *ours, "--tokens-per-batch", of_reference, *num_sequences(16384)),
            score("tune-teacher", 165, teacher, *ours, "--tokens-per-batch", of_teacher, *num_sequences(2048)),
        ],
        # One process a size: what PyTorch compiled for one number of sequences serves the next in part.
        "tune-train": [
            train(f"tune-train-{name}", 235, "--sides", sides if rehearse else "ours", *sweep, size=name)
            for name in ((size,) if rehearse else ("qwen-104m", "qwen-200m"))
        ],
        # Other engines over the same sequences, those that are installed.
        "engines": [Step("engines", 470, ("benchmarks.scoring_engines", *engines, *common), () if rehearse else ENGINES)],
    }
    if not rehearse:
        return stages
    # There teacher and reference are one toy, and what is the same command is run once.
    once = {step.arguments: step.name for steps in reversed(stages.values()) for step in reversed(steps)}
    return {stage: [step for step in steps if once[step.arguments] == step.name] for stage, steps in stages.items()}


def run_step(step: Step, folder: Path, is_warm: bool = False) -> dict[str, Any]:
    """Runs a step to its end or its limit; its record: `exit_code` is None where it was killed at the limit.

    `is_warm`: in a fork of this process, which `warm_up` has made ready, instead of a new interpreter.
    """
    started, log = time.monotonic(), folder / f"{step.name}.log"
    if is_warm:
        exit_code = _run_fork(step, log)
    else:
        exit_code = run_limited([sys.executable, "-m", *step.arguments], log, step.limit_seconds, os.environ)
    return {"step": step.name, "exit_code": exit_code, "seconds": round(time.monotonic() - started, 1)}


def warm_up() -> None:
    """Imports what would take each step of a rehearsal most of its time."""
    # What a CPU's compiler makes of a toy says nothing of a GPU's, and takes long. PyTorch reads it when it is imported.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    for name in ("pytest", "benchmarks.published_scoring", "benchmarks.training_sides", "transformers.models.qwen2.modeling_qwen2"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _run_fork(step: Step, log: Path) -> int | None:
    fork = multiprocessing.get_context("fork").Process(target=_run_module, args=(step, log))
    fork.start()
    assert fork.pid is not None
    try:
        fork.join(step.limit_seconds)
        return fork.exitcode
    finally:
        # Ends what a step left running too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(fork.pid, signal.SIGKILL)
        fork.join()


def _run_module(step: Step, log: Path) -> None:
    """Does what `python -m` would, as the leader of a session of its own, which writes all it says into a file."""
    os.setsid()
    os.chdir(_ROOT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
    os.dup2(1, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv[1:] = step.arguments[1:]
    runpy.run_module(step.arguments[0], run_name="__main__", alter_sys=True)


def _say_end(step: Step, record: dict[str, Any], folder: Path) -> None:
    code = record["exit_code"]
    end = "ok" if code == 0 else f"stopped at its limit of {step.limit_seconds} s" if code is None else f"FAILED, exit code {code}"
    print(f"== {step.name}: {end}, {record['seconds']:.0f} s", flush=True)
    log = (folder / f"{step.name}.log").read_text(encoding="utf-8", errors="replace")
    print("\n".join(log.splitlines()[-_SHOWN_LINES:]), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = plan_stages(Path("rows.jsonl"), rehearse=False)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(stages)}; default: all, in this order")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with models of a toy's size")
    parser.add_argument("--output", type=Path, default=Path("gpu-check"), help="folder of rows and logs (default gpu-check)")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.stages) - set(stages))
    if unknown:
        parser.error(f"there is no stage {', '.join(unknown)}; the stages are {', '.join(stages)}")
    folder = given.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    num_before = len(read_rows(rows))
    stages = plan_stages(rows, given.rehearse)
    if given.rehearse:
        warm_up()
    records, skipped = [], []
    for stage in given.stages or stages:
        for step in stages[stage]:
            if reason := step.find_reason_to_skip():
                print(f"== {step.name}: skipped, {reason}", flush=True)
                append_rows(folder / "steps.jsonl", [{"stage": stage, "step": step.name, "skipped": reason}])
                skipped.append(step.name)
                continue
            records.append({"stage": stage} | run_step(step, folder, given.rehearse))
            _say_end(step, records[-1], folder)
            append_rows(folder / "steps.jsonl", records[-1:])
    measured = read_rows(rows)[num_before:]
    print("\n" + format_rows(measured, *_TITLES) if measured else "\nno step gave a row")
    failed = [record["step"] for record in records if record["exit_code"] != 0]
    print(
        f"\n{len(records) - len(failed)} of {len(records)} steps ended well"
        + (f"; not: {', '.join(failed)}" if failed else "")
        + (f"; skipped: {', '.join(skipped)}" if skipped else "")
    )
    print(f"rows: {rows}, logs: {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
