"""The same packed sequences through MiniPLM and the engines that people score with: vLLM, lm-evaluation-harness.

    python -m benchmarks.scoring_engines --model models/smollm2-135m --eos-token '<|endoftext|>'
    python -m benchmarks.scoring_engines --model qwen1.5-1.8b                         random weights, for a GPU
    python -m benchmarks.scoring_engines --python vllm=/opt/vllm/bin/python           an engine of another environment

Each side is a process with a limit of its own; one that is not installed, fails or hangs is named in the table and in the rows.
benchmarks/README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from benchmarks.engine_sides import SIDES
from benchmarks.limited_process import run_limited
from benchmarks.records import append_rows, describe_place, format_rows, make_parser, run_benchmark
from benchmarks.scoring_inputs import RANDOM_MODELS, Inputs, add_inputs, locate_model, make_inputs
from miniplm.errors import ConfigError
from miniplm.models.devices import resolve_device
from miniplm.models.skeleton import read_skeleton
from miniplm.storage.root import Storage

_GIB = 2**30
_TITLES = (
    "side",
    "version",
    "dtype",
    "tokens/s",
    "x ours",
    "load s",
    "first batch s",
    "max diff nats",
    "mean diff nats",
    "host GiB",
    "GiB",
)
_SHOWN_LINES = 20
_ENGINES = [name for name in SIDES if name != "reference"]


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("scoring_engines", __doc__)
    add = parser.add_argument
    add_inputs(parser)
    add("--sides", default=",".join(_ENGINES), help=f"with commas (default {','.join(_ENGINES)})")
    add("--python", action="append", default=[], metavar="SIDE=PATH", help="interpreter of a side; default: this one")
    add("--dtype", help="of all sides; default bfloat16 on a GPU, float32 on a CPU")
    add("--sequences", type=int, help="sequences to score; default 1024 on a GPU, 16 on a CPU")
    add("--checked", type=int, default=4, help="sequences that are also scored in float64 (default 4; 0: none)")
    add("--repeats", type=int, default=2, help="runs of each side once it is warm; the best counts, all are recorded (default 2)")
    add("--lm-eval-batch", help="a number or auto; default auto on a GPU, 8 on a CPU")
    add("--limit-seconds", type=float, default=600, help="of each side; it is killed then (default 600)")
    add("--total-seconds", type=float, default=float("inf"), help="of all sides together; those left then are not run")
    return parser


def _run(arguments: argparse.Namespace, scratch: Path) -> int:
    device = resolve_device(arguments.device)
    sides = _list_sides(arguments.sides)
    interpreters = _read_interpreters(arguments.python)
    inputs = _make_inputs(arguments, scratch, device)
    sequences = [np.asarray(row, dtype=np.int64) for row in inputs.read_sequences()]
    on_gpu = device.type == "cuda"
    request = {
        "model": str(inputs.folder.resolve()),
        "dtype": arguments.dtype or ("bfloat16" if on_gpu else "float32"),
        "device": str(device),
        "longest": max(len(row) for row in sequences),
        # A batch, with which an engine compiles what it compiles.
        "first": min(len(sequences), 64 if on_gpu else 2),
        "repeats": arguments.repeats,
        "checked": np.linspace(0, len(sequences) - 1, min(arguments.checked, len(sequences))).round().astype(int).tolist(),
        "lm_eval_batch": arguments.lm_eval_batch or ("auto" if on_gpu else 8),
    }
    (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
    lengths = np.array([len(row) for row in sequences])
    np.savez(scratch / "sequences.npz", token_ids=np.concatenate(sequences), lengths=lengths)
    common = {
        "benchmark": "scoring-engines",
        **describe_place(device),
        "model": Path(arguments.model).name,
        "num_parameters": read_skeleton(inputs.folder).num_parameters,
        "data": inputs.data,
        "num_sequences": len(sequences),
        "num_tokens": inputs.num_tokens,
        "num_checked": len(request["checked"]),
    }
    print(
        f"{common['model']} on {common['device']} ({common['processor']}), {len(sequences):,} sequences, {inputs.num_tokens:,} tokens"
    )
    rows: list[dict[str, Any]] = []
    ends_at = time.monotonic() + arguments.total_seconds
    reference: dict[str, Any] = {}
    # First what the others are compared with, and each row written as it is there: what comes later may take the machine down.
    checks = ["reference"] if request["checked"] else []
    for name in sorted([*sides, *checks], key=lambda name: (name != "reference", name != "ours")):
        limit = min(arguments.limit_seconds, ends_at - time.monotonic())
        python = interpreters.get(name, sys.executable)
        told = run_side(name, scratch, python, limit, on_gpu) if limit > 0 else {"reason": "not run: no time was left"}
        print(f"  {name}: {told.get('reason', 'ok')}", flush=True)
        if name == "reference":
            reference = told
            continue
        exact = None if not reference or "reason" in reference else np.load(scratch / "reference.npy")
        ours = next((row for row in rows if row["side"] == "ours"), None)
        rows.append(make_row(name, told, request, lengths, exact, ours, scratch))
        if arguments.json:
            append_rows(arguments.json, [common | rows[-1]])
    print("\n" + format_rows(rows, *_TITLES))
    if "reason" in reference:
        print(f"no differences, since nothing was computed in float64: {reference['reason']}")
    # Of the others a failure is a finding.
    return 1 if "reason" in reference or any("reason" in row for row in rows if row["side"] == "ours") else 0


def _list_sides(text: str) -> list[str]:
    sides = text.split(",")
    unknown = [name for name in sides if name not in _ENGINES]
    if unknown:
        raise ConfigError(f"--sides: there is no side {', '.join(unknown)}; the sides are {', '.join(_ENGINES)}")
    return sides


def _read_interpreters(settings: list[str]) -> dict[str, str]:
    interpreters = {}
    for setting in settings:
        side, _, path = setting.partition("=")
        if side not in _ENGINES or not Path(path).is_file():
            raise ConfigError(f"--python {setting}: give SIDE=PATH of an interpreter, SIDE one of {', '.join(_ENGINES)}")
        # Not resolved: a link into another installation is what makes an environment.
        interpreters[side] = os.path.abspath(path)
    return interpreters


def _make_inputs(arguments: argparse.Namespace, scratch: Path, device: torch.device) -> Inputs:
    num_sequences = arguments.sequences or (1024 if device.type == "cuda" else 16)
    folder = locate_model(arguments, scratch, device)
    inputs = make_inputs(arguments, folder, Storage(str(scratch / "storage")), num_sequences, 1)
    if arguments.model in RANDOM_MODELS:
        inputs.tokenizer.save_pretrained(str(folder))  # lm-evaluation-harness opens no model without one
    return inputs


def run_side(name: str, folder: Path, python: str, limit_seconds: float, on_gpu: bool) -> dict[str, Any]:
    """What a side told of itself, with its peak memory; `reason` where it did not run, failed, or was killed at its limit."""
    memory = _MemoryWatch(on_gpu)
    environment = os.environ | {
        # What was compiled before is not found, so that a fresh start is what a new machine has.
        "TORCHINDUCTOR_CACHE_DIR": str(folder / f"{name}-compiled"),
        "VLLM_CACHE_ROOT": str(folder / f"{name}-vllm"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRITON_CACHE_DIR": str(folder / f"{name}-triton"),
    }
    if not on_gpu:
        # As many threads for every side; vLLM would take all cores, and most of the memory for keys and values.
        environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads()), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment = {"VLLM_CPU_KVCACHE_SPACE": "2"} | environment
    log = folder / f"{name}.log"
    command = [python, "-m", "benchmarks.engine_sides", name, str(folder)]
    code = run_limited(command, log, limit_seconds, environment, memory.look)
    result = folder / f"{name}.json"
    if code == 0 and result.exists():
        told: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    elif code is None:
        told = {"reason": f"stopped at its limit of {limit_seconds:g} s"}
    else:
        told = {"reason": f"failed, exit code {code}: {_last_line(log)}"}
    if not result.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
        print("\n".join([f"  the end of the log of {name}:", *(f"    {line}" for line in lines)]), flush=True)
    return told | ({} if "reason" in told else memory.peaks())


def _last_line(log: Path) -> str:
    """The last line of a log that names an error, else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and not line.startswith(("File ", "Traceback"))]
    return ([*lines[-1:], *errors] or ["it said nothing"])[-1][:300]


class _MemoryWatch:
    """The most memory that a process and all that it started held, and the most that the GPU had in use beyond what it had before.

    Seen from outside, the same way for every side: engines keep memory in processes of their own.
    """

    def __init__(self, on_gpu: bool) -> None:
        self._most_bytes, self._most_gpu_bytes = 0, 0
        self._gpu_before = _read_gpu_bytes() if on_gpu else None
        self._asking: threading.Thread | None = None

    def look(self, pid: int) -> None:
        try:
            process = psutil.Process(pid)
            tree = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        total = 0
        for one in tree:
            try:
                total += one.memory_info().rss
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        self._most_bytes = max(self._most_bytes, total)
        if self._gpu_before is not None and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._look_at_gpu, daemon=True)
            self._asking.start()

    def _look_at_gpu(self) -> None:
        assert self._gpu_before is not None
        self._most_gpu_bytes = max(self._most_gpu_bytes, (_read_gpu_bytes() or 0) - self._gpu_before)

    def peaks(self) -> dict[str, float | None]:
        """In GiB; of a GPU None where there is none, or nothing tells."""
        gpu = None if self._gpu_before is None else self._most_gpu_bytes / _GIB
        return {"host_memory_gib": self._most_bytes / _GIB, "gpu_memory_gib": gpu}


def _read_gpu_bytes() -> int | None:
    """Memory in use on all GPUs together; None where `nvidia-smi` does not tell."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return sum(int(line) for line in result.stdout.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def make_row(
    name: str,
    told: dict[str, Any],
    request: dict[str, Any],
    lengths: NDArray[Any],
    exact: NDArray[Any] | None,
    ours: dict[str, Any] | None,
    folder: Path,
) -> dict[str, Any]:
    """The row of a side: rate of the best run once it is warm, its ratio to ours, and how far NLLs are from the sums in float64.

    `lengths` and `exact` are (num_sequences,).
    """
    row = {"side": name, "dtype": request["dtype"], **told}
    if "reason" in told:
        return row
    means = np.load(folder / f"{name}.npy") / (lengths - 1)
    rate = int(lengths.sum()) / min(told["seconds"])
    row |= {
        "tokens_per_second": rate,
        "ratio_to_ours": 1.0 if name == "ours" else rate / ours["tokens_per_second"] if ours and "reason" not in ours else None,
        "start_up_seconds": told["load_seconds"] + told["first_batch_seconds"],
        "mean_nll": float(means.mean()),
    }
    if exact is not None:
        checked = request["checked"]
        differences = np.abs(means[checked] - exact / (lengths[checked] - 1))
        row |= {"max_abs_difference": float(differences.max()), "mean_abs_difference": float(differences.mean())}
    return row


if __name__ == "__main__":
    sys.exit(run_benchmark(_make_parser(), _run))
