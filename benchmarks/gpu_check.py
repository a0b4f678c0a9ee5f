"""All that wants a GPU, stage by stage: tests of the kernels, the speeds of the README's table, and what may hang, last.

    scripts/gpu_check.sh tests            one stage; each ends within 8 minutes
    scripts/gpu_check.sh                  all of them
    scripts/gpu_check.sh --rehearse       the same commands on a CPU, with models of a toy's size: does it run at all?

Each step is a process of its own with its own limit: one that hangs or crashes costs its own time and nothing else. Rows are
appended to OUTPUT/rows.jsonl, logs lie beside it; docs/gpu.md says what a machine needs and how the rows are read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.records import append_rows, format_table, show

_ROOT = Path(__file__).resolve().parents[1]
_STAGE_SECONDS = 480
_SHOWN_LINES = 14


@dataclass(frozen=True)
class Step:
    """One process: `arguments` of `python -m`, killed with all that it started after `limit_seconds`."""

    name: str
    limit_seconds: int
    arguments: tuple[str, ...]


def plan_stages(rows: Path, rehearse: bool) -> dict[str, list[Step]]:
    """The steps of each stage, in the order in which a machine that is there for half an hour is used best."""
    pytest = ("pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", "-rfE")
    timeout = ("--timeout", "150") if find_spec("pytest_timeout") else ()
    reference, teacher, size = ("qwen-tiny", "qwen-tiny", "tiny") if rehearse else ("qwen-104m", "qwen1.5-1.8b", "qwen-200m")
    common = ("--json", str(rows), *(("--device", "cpu") if rehearse else ()))

    def score(name: str, limit: int, model: str, *more: str) -> Step:
        small = ("--sequences", "2", "--length", "64", "--shards", "1", "--vocab-size", "4096") if rehearse else ()
        return Step(name, limit, ("benchmarks.scoring", "--model", model, "--repeats", "1", *small, *common, *more))

    def train(name: str, limit: int, *more: str) -> Step:
        small = ("--batch", "2", "--steps", "1", "--length", "64") if rehearse else ()
        return Step(name, limit, ("benchmarks.training", "--size", size, *small, *common, *more))

    def num_sequences(number: int) -> tuple[str, ...]:
        return () if rehearse else ("--sequences", str(number))

    ours = ("--sides", "ours", "--dtypes", "float32" if rehearse else "bfloat16")
    # Beside what `auto` begins with, which the stage `speed` measures.
    of_reference, of_teacher = ("128,256", "128,256") if rehearse else ("16384,32768,131072", "32768,65536")
    head = ("--heads", "--sides", "none", *(("--head-tokens", "96,128", "--head-seconds", "0.01") if rehearse else ()))
    # Each variant, tile and batch; half a second each.
    batches = () if rehearse else ("--head-tokens", "16384,32768,65536", "--head-seconds", "0.5")
    stages = {
        "tests": [Step("tests", 470, (*pytest, "-m", "gpu", *timeout))],
        "speed": [
            score("speed-reference", 160, reference, "--sides", "published,ours"),
            score("speed-teacher", 310, teacher, "--sides", "published,ours"),
        ],
        "train": [
            train("train", 250, "--sides", "published,published-fp16,ours"),
            # Alone, since whole logits at 32 sequences may not fit.
            train("train-trainer", 220, "--sides", "trainer", "--micro-batch", "2" if rehearse else "8"),
        ],
        "tune": [
            score("tune-head", 200, reference, *head, *batches),
            score("tune-reference", 110, reference, *ours, "--tokens-per-batch", of_reference, *num_sequences(16384)),
            score("tune-teacher", 165, teacher, *ours, "--tokens-per-batch", of_teacher, *num_sequences(2048)),
        ],
        "risky": [
            # A kernel that hangs holds the device, so those that may come last of all.
            Step(
                "warp-specialised",
                240,
                (*pytest, "-m", "gpu and risky", *(("--timeout", "60", "--timeout-method", "thread") if timeout else ())),
            ),
            score(
                "warp-specialised-heads",
                220,
                reference,
                *head,
                *(() if rehearse else ("--warp-specialized", "--head-seconds", "0.5")),
            ),
        ],
    }
    if not rehearse:
        return stages
    # There teacher and reference are one toy, and what is the same command is run once.
    once = {step.arguments: step.name for steps in reversed(stages.values()) for step in reversed(steps)}
    return {stage: [step for step in steps if once[step.arguments] == step.name] for stage, steps in stages.items()}


def run_step(step: Step, folder: Path, rehearse: bool = False) -> dict[str, Any]:
    """Runs a step to its end or its limit; its record: `exit_code` is None where it was killed at the limit."""
    # What a CPU's compiler makes of a toy says nothing of a GPU's, and takes most of the time.
    environment = os.environ | ({"TORCHDYNAMO_DISABLE": "1"} if rehearse else {})
    started = time.monotonic()
    with open(folder / f"{step.name}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *step.arguments],
            cwd=_ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        exit_code: int | None
        try:
            exit_code = process.wait(step.limit_seconds)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            _kill_group(process)
    return {"step": step.name, "exit_code": exit_code, "seconds": round(time.monotonic() - started, 1)}


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what a step left running too, so that the next one has the device for itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def format_rows(rows: Iterable[dict[str, Any]]) -> str:
    """The measured rows as one table: rates, ratios within a run, share of the matmul peak of that run."""
    header = ["what", "side", "dtype", "batch", "tokens/s", "x published", "x Trainer", "of matmul peak", "GiB", "start-up s"]
    cells = [
        [
            str(row.get("size") or row.get("model")),
            str(row.get("side") or f"head {row.get('kernel')}"),
            str(row.get("dtype", "")),
            show(row["num_tokens"] if "kernel" in row else (row.get("engine") or {}).get("tokens_per_batch"), ","),
            show(row.get("tokens_per_second"), ",.0f"),
            show(row.get("ratio_to_published", row.get("ratio")), ".2f"),
            show(row.get("ratio_to_trainer"), ".2f"),
            show(row.get("matmul_peak_share"), ".1%"),
            show(row.get("gpu_memory_gib", row.get("gpu_memory_gib_beyond_weights")), ".1f"),
            show(row.get("start_up_seconds"), ".1f") if "reason" not in row else str(row["reason"])[:60],
        ]
        for row in rows
    ]
    return format_table(header, cells) if cells else "no step gave a row"


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
    num_before = len(_read_rows(rows))
    stages = plan_stages(rows, given.rehearse)
    records = []
    for stage in given.stages or stages:
        for step in stages[stage]:
            records.append({"stage": stage} | run_step(step, folder, given.rehearse))
            _say_end(step, records[-1], folder)
            append_rows(folder / "steps.jsonl", records[-1:])
    print("\n" + format_rows(_read_rows(rows)[num_before:]))
    failed = [record["step"] for record in records if record["exit_code"] != 0]
    print(f"\n{len(records) - len(failed)} of {len(records)} steps ended well" + (f"; not: {', '.join(failed)}" if failed else ""))
    print(f"rows: {rows}, logs: {folder}")
    return 1 if failed else 0


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
