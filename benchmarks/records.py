"""What every row of a benchmark says of where it was measured, and how rows are written and shown."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from miniplm.models.devices import describe_device

_PACKAGES = ("torch", "transformers", "accelerate", "triton", "quack-kernels", "liger-kernel", "lm_eval")
_REPOSITORY = Path(__file__).resolve().parents[1]


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


def show(value: float | None, form: str) -> str:
    """A number in a format; `n/a` for None."""
    return "n/a" if value is None else format(value, form)


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
