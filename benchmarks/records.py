"""What benchmarks have in common: how one is called, what every row says of where it was measured, how rows are written and shown."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from miniplm.errors import MiniplmError
from miniplm.models.devices import describe_device

Rows = list[dict[str, Any]]
Result = TypeVar("Result")
_PACKAGES = ("torch", "transformers", "accelerate", "triton", "liger-kernel", "lm_eval")
_REPOSITORY = Path(__file__).resolve().parents[1]
# By the title of a column: the keys of a row, of which the first that is there is shown, and their format.
_COLUMNS = {
    "side": ("side kernel", ""),
    "CPU s": ("cpu_seconds", ".2f"),
    "x read": ("ratio_to_read", ".2f"),
    "MB/s": ("mb_per_second", ".1f"),
    "MB/CPU s": ("mb_per_cpu_second", ".1f"),
    "x tokenizer": ("ratio_to_tokenizer", ".2f"),
    "x tokenizer, CPU": ("cpu_ratio_to_tokenizer", ".2f"),
    "kernel": ("kernel", ""),
    "version": ("version", ""),
    "dtype": ("dtype", ""),
    "what": ("size model", ""),
    "batch": ("tokens_per_batch", ","),
    "micro-batch": ("micro_batch_size", ""),
    "tokens": ("num_tokens", ","),
    "tokens/s": ("tokens_per_second", ",.0f"),
    "x published": ("ratio_to_published", ".2f"),
    "x Trainer": ("ratio_to_trainer", ".2f"),
    "x ours": ("ratio_to_ours", ".2f"),
    "of matmul peak": ("matmul_peak_share", ".1%"),
    "device waits": ("device_wait_share", ".1%"),
    "GiB": ("gpu_memory_gib gpu_memory_gib_beyond_weights", ".1f"),
    "host GiB": ("host_memory_gib", ".1f"),
    "load s": ("load_seconds", ".1f"),
    "first batch s": ("first_batch_seconds", ".1f"),
    "start-up s": ("start_up_seconds", ".1f"),
    "seconds": ("seconds", ".4f"),
    "head": ("head", ""),
    "max diff nats": ("max_abs_difference", ".2g"),
    "mean diff nats": ("mean_abs_difference", ".2g"),
}


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.NAME`, which is described by its module's docstring; with `--device` and `--json`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, help="file that a JSON object for each row is appended to, a line each")
    return parser


def add_sides(parser: argparse.ArgumentParser, sides: Iterable[str], default: Iterable[str] | None = None) -> None:
    """`--sides`, by default all, for a benchmark that measures each by `measure_apart`."""
    names = list(sides)
    parser.add_argument("--sides", nargs="+", default=names if default is None else list(default), choices=names)
    parser.add_argument("--measure", choices=names, help=argparse.SUPPRESS)


def run_benchmark(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace, Path], Rows | int | None],
    measure: Callable[[argparse.Namespace], dict[str, Any]] | None = None,
) -> int:
    """Calls `work` with the arguments and a folder that is deleted afterwards; gives the exit code. An error of ours ends it in one line.

    Rows that it returns go to `--json`. A process that `measure_apart` starts calls `measure` in its place, and prints what that gives.
    """
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="miniplm-benchmark-") as scratch:
        try:
            if measure is not None and arguments.measure:
                print(json.dumps(measure(arguments)))
                return 0
            result = work(arguments, Path(scratch)) or 0
        except MiniplmError as error:
            raise SystemExit(f"{parser.prog}: {error}") from None
    if isinstance(result, int):
        return result
    if arguments.json is not None:
        append_rows(arguments.json, result)
    return 0


def measure_apart(name: str, arguments: Sequence[str], side: str) -> dict[str, Any]:
    """What `benchmarks.NAME` measures of a side in a process of its own, so that its most memory is its own; the reason where it fails."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--measure", side, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"side": side, "reason": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def repeat_sides(sides: Sequence[str], num_repeats: int, measure: Callable[[str], dict[str, Any]]) -> Rows:
    """Each side's row of least CPU seconds, and all of its rows in it.

    A round of all sides follows the other, so that a busy minute of the machine meets them alike.
    """
    rounds = [[measure(side) for side in sides] for _ in range(num_repeats)]
    return [
        min(rows, key=lambda row: row.get("cpu_seconds", float("inf"))) | {"all_runs": list(rows)}
        for rows in zip(*rounds, strict=True)
    ]


def measure_work(work: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    """What the work gives; its seconds, those of all threads and of processes that it waited for, and the most memory of this process by then."""
    before, started = os.times(), time.perf_counter()
    result = work()
    seconds, after = time.perf_counter() - started, os.times()
    used = [getattr(after, name) - getattr(before, name) for name in ("user", "system", "children_user", "children_system")]
    return (
        result,
        {
            "seconds": round(seconds, 3),
            "cpu_seconds": max(0.01, round(sum(used), 3)),  # it is counted in ticks of 10 ms
            "first_process_cpu_seconds": round(sum(used[:2]), 3),
            "host_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        },
    )


def describe_place(device: torch.device) -> dict[str, Any]:
    """Date (UTC), device, versions and the commit. `dirty`: files differ from that commit; None where git cannot tell."""
    commit, changes = _ask_git("rev-parse", "HEAD"), _ask_git("status", "--porcelain")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": describe_device(device),
        "processor": _name_processor(),
        "versions": {package: found for package in _PACKAGES if (found := _find_version(package))},
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
        "load_before": round(os.getloadavg()[0], 2),
    }


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, after what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path) -> Rows:
    """What `append_rows` has written so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that can be read as it is, numbers to the right of the first column."""
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        parts = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(parts)} |"

    rule = [":" + "-" * (width - 1) if index == 0 else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def format_rows(rows: Sequence[dict[str, Any]], *titles: str) -> str:
    """A table of rows, its columns by their titles in `_COLUMNS`; `n/a` for what a row does not tell, and below why nothing was measured."""

    def show(row: dict[str, Any], title: str) -> str:
        keys, form = _COLUMNS[title]
        value = next((row[key] for key in keys.split() if row.get(key) is not None), None)
        return "n/a" if value is None else format(value, form)

    reasons = [f"{show(row, 'side')}: {row['reason']}" for row in rows if "reason" in row]
    return "\n".join([format_table(titles, [[show(row, title) for title in titles] for row in rows]), *reasons])


def _ask_git(*arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], cwd=_REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _name_processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
