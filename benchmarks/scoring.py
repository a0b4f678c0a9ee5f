"""How fast MiniPLM scores, against the published way, measured in one run on one device.

    python -m benchmarks.scoring --model models/smollm2-135m          a real model on real text
    python -m benchmarks.scoring --model qwen1.5-1.8b --heads         the published teacher's size, random weights

Every side reads the same shards and gives the score of every sequence; benchmarks/README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from benchmarks.published_scoring import PublishedSide
from benchmarks.records import append_rows, describe_place, format_rows, make_parser, run_benchmark
from benchmarks.scoring_heads import measure_heads
from benchmarks.scoring_inputs import Inputs, add_inputs, locate_model, make_inputs
from benchmarks.scoring_sides import OurSide, SideRun
from miniplm import layout
from miniplm.errors import ConfigError
from miniplm.models.devices import resolve_device, torch_dtype
from miniplm.models.loading import load_model
from miniplm.models.skeleton import read_skeleton
from miniplm.models.throughput import count_flops_per_token, measure_matmul_peak
from miniplm.storage.root import Storage

Side = PublishedSide | OurSide

# With these a side takes about half a minute: at this share of the matmul peak.
_SECONDS_A_SIDE, _SHARE_ASSUMED = 30, 0.3
_GIB = 2**30


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("scoring", __doc__)
    add_inputs(parser)
    parser.add_argument("--dtypes", help="dtypes of our side; default bfloat16,fp8,fp8-head on a GPU, float32,bfloat16 on a CPU")
    parser.add_argument(
        "--sides", default="published,ours", help="published, ours or both, with a comma (default: both); none with --heads"
    )
    parser.add_argument(
        "--batch", type=int, help="sequences a batch of the published side; default 16 on a GPU, as published, 8 on a CPU"
    )
    parser.add_argument(
        "--tokens-per-batch",
        default="auto",
        help="tokens a batch of our side, several with commas; default auto, as a run has it",
    )
    parser.add_argument("--sequences", type=int, help="sequences to score; default: about 30 s a side")
    parser.add_argument("--shards", type=int, help="shards they are cut into; default 4 on a GPU, 2 on a CPU")
    parser.add_argument(
        "--repeats", type=int, default=2, help="runs of each side, in turn; the best counts, all are printed (default 2)"
    )
    parser.add_argument("--heads", action="store_true", help="also time each kernel of the head alone")
    parser.add_argument("--head-tokens", help="with --heads: tokens a pass, several with commas; default 65536 on a GPU")
    parser.add_argument("--head-seconds", type=float, default=1.0, help="with --heads: time given to each (default 1; 0: one pass)")
    return parser


def _run(arguments: argparse.Namespace, scratch: Path) -> None:
    disable_progress_bar()
    # What was compiled before is not found, so that start-up is what a new machine has.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{scratch}/compile-cache"
    device = resolve_device(arguments.device)
    place = describe_place(device)
    inputs = _make_inputs(arguments, scratch, device)
    common = place | {
        "model": Path(arguments.model).name,
        "num_parameters": read_skeleton(inputs.folder).num_parameters,
        "data": inputs.data,
        "num_sequences": inputs.num_sequences,
        "num_shards": len(inputs.shards),
        "num_tokens": inputs.num_tokens,
    }
    print(
        f"{common['model']} on {place['device']} ({place['processor']}), {inputs.num_sequences:,} sequences, {inputs.num_tokens:,} tokens: {inputs.data}"
    )
    if arguments.heads:
        _report_heads(arguments, inputs, device, common)
        if arguments.sides == "none":
            return
    sides = _open_sides(arguments, inputs, device)
    runs: list[list[SideRun]] = [[] for _ in sides]
    memory: list[float | None] = [None] * len(sides)
    peaks: dict[torch.dtype, float] = defaultdict(float)
    for repeat in range(arguments.repeats):
        # Measured again each time, without what was measured before: other work on the machine lowers a peak, nothing raises it.
        for dtype in {torch_dtype(side.dtype) for side in sides}:
            peaks[dtype] = max(peaks[dtype], measure_matmul_peak.__wrapped__(device, dtype))
        for index, side in enumerate(sides):
            run, used = _run_once(side, device)
            runs[index].append(run)
            memory[index] = used if used is None else max(used, memory[index] or 0.0)
            print(
                f"  run {repeat + 1} {side.name} {side.dtype}: {run.seconds:.2f} s, {inputs.num_tokens / run.seconds:,.0f} tokens/s",
                flush=True,
            )
    rows = _make_rows(inputs, device, sides, runs, memory, peaks)
    titles = (
        "side",
        "dtype",
        "tokens/s",
        "x published",
        "of matmul peak",
        "device waits",
        "GiB",
        "start-up s",
        "head",
        "max diff nats",
    )
    print("\n" + format_rows(rows, *titles))
    for row in rows:
        for note in row["engine"].get("notes", ()):
            print(f"{row['side']} {row['dtype']}: {note}")
    if arguments.json:
        append_rows(arguments.json, [{"benchmark": "scoring"} | common | row for row in rows])


def _make_inputs(arguments: argparse.Namespace, scratch: Path, device: torch.device) -> Inputs:
    folder = locate_model(arguments, scratch, device)
    num_shards = arguments.shards or (4 if device.type == "cuda" else 2)
    num_sequences = arguments.sequences
    if num_sequences is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        rate = _SHARE_ASSUMED * measure_matmul_peak(device, dtype) / (2 * read_skeleton(folder).num_parameters)
        # Whole batches of the published side, so that the last ones are not smaller than the others.
        step = _published_batch(arguments, device) * num_shards
        num_sequences = max(1, round(_SECONDS_A_SIDE * rate / arguments.length / step)) * step
    return make_inputs(arguments, folder, Storage(str(scratch / "storage")), num_sequences, num_shards)


def _published_batch(arguments: argparse.Namespace, device: torch.device) -> int:
    return int(arguments.batch or (16 if device.type == "cuda" else 8))


def _open_sides(arguments: argparse.Namespace, inputs: Inputs, device: torch.device) -> list[Side]:
    on_gpu = device.type == "cuda"
    wanted = arguments.sides.split(",")
    sides: list[Side] = []
    if "published" in wanted:
        sides.append(PublishedSide(inputs, device, "float16" if on_gpu else "float32", _published_batch(arguments, device)))
    if "ours" in wanted:
        sizes = [size if size == "auto" else int(size) for size in arguments.tokens_per_batch.split(",")]
        dtypes = (arguments.dtypes or ("bfloat16,fp8,fp8-head" if on_gpu else "float32,bfloat16")).split(",")
        sides += [OurSide(inputs, device, dtype, size) for dtype in dtypes for size in sizes]
    if not sides:
        raise ConfigError(f"--sides {arguments.sides} names no side; give published, ours or both")
    return sides


def _run_once(side: Side, device: torch.device) -> tuple[SideRun, float | None]:
    """A run, and the most GPU memory (GiB) that was in use beyond what was before it: the weights of all sides."""
    gc.collect()
    if device.type != "cuda":
        return side.run(), None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run = side.run()
    return run, (torch.cuda.max_memory_allocated(device) - before) / _GIB


def _make_rows(
    inputs: Inputs,
    device: torch.device,
    sides: list[Side],
    runs: list[list[SideRun]],
    memory: list[float | None],
    peaks: dict[torch.dtype, float],
) -> list[dict[str, Any]]:
    """A row a side; the published one, where it is there, is the first, and what the others are compared with."""
    has_published = sides[0].name == "published"
    best = [min(side_runs, key=lambda run: run.seconds) for side_runs in runs]
    num_inputs = inputs.num_tokens - inputs.num_sequences
    plain = load_model(inputs.folder, "bfloat16", device)
    flops = count_flops_per_token(plain.body, plain.head, num_inputs / inputs.num_sequences)
    del plain
    means = [_read_means(inputs, side) for side in sides]
    rows = []
    for index, (side, run) in enumerate(zip(sides, best, strict=True)):
        peak = peaks[torch_dtype(side.dtype)]
        differences = means[index] - means[0] if has_published and index else None
        rows.append(
            {
                "side": side.name,
                "dtype": side.dtype,
                "seconds": [other.seconds for other in runs[index]],
                "tokens_per_second": inputs.num_tokens / run.seconds,
                "ratio_to_published": best[0].seconds / run.seconds if has_published else None,
                "flops_per_token": flops,
                "matmul_peak": peak,
                "matmul_peak_share": None if flops is None else flops * num_inputs / run.seconds / peak,
                "device_wait_share": None if run.busy_seconds is None else max(0.0, 1 - run.busy_seconds / run.seconds),
                "gpu_memory_gib_beyond_weights": memory[index],
                "start_up_seconds": side.start_up_seconds,
                "head": side.head,
                "engine": side.engine,
                "tokens_per_batch": side.engine.get("tokens_per_batch"),
                "mean_nll": float(means[index].mean()),
                "max_abs_difference": None if differences is None else float(np.abs(differences).max()),
                "mean_difference": None if differences is None else float(differences.mean()),
            }
            | run.details
        )
    return rows


def _read_means(inputs: Inputs, side: Side) -> NDArray[np.float64]:
    """Mean NLL a scored token of each sequence, (num_sequences,), from the score files of a side."""
    parts = []
    for shard in inputs.shards:
        with inputs.storage.open(layout.score_shard(shard.corpus_id, side.model_id, shard.shard_index)) as file:
            table = pq.read_table(file).sort_by("sequence_id")
        parts.append(table["nll_sum"].to_numpy() / np.maximum(table["num_scored_tokens"].to_numpy(), 1))
    return np.concatenate(parts)


def _report_heads(arguments: argparse.Namespace, inputs: Inputs, device: torch.device, common: dict[str, Any]) -> None:
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    head = load_model(inputs.folder, dtype, device).head
    numbers = [int(number) for number in arguments.head_tokens.split(",")] if arguments.head_tokens else []
    rows = list(measure_heads(head, numbers, arguments.head_seconds))
    print("\n" + format_rows(rows, "kernel", "dtype", "tokens", "seconds", "tokens/s", "of matmul peak"))
    if arguments.json:
        append_rows(arguments.json, [{"benchmark": "scoring-head"} | common | row for row in rows])


if __name__ == "__main__":
    run_benchmark(_make_parser(), _run)
