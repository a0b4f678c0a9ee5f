"""How fast MiniPLM trains, against the published practice and the transformers Trainer, in one run on one device.

    python -m benchmarks.training --size qwen-200m            the published student of 200M, as published: 1,024 targets
    python -m benchmarks.training --size qwen-500m --kd       and the peak memory of vanilla KD with a 1.8B teacher
    python -m benchmarks.training --size tiny                 a trial that a CPU does in a minute

Every side trains the same fresh model on the same sequences; benchmarks/README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.records import append_rows, describe_place, format_rows, make_parser, run_benchmark
from benchmarks.training_inputs import RANDOM_MODELS, SIZES, TrainingInputs, make_training_inputs, write_teacher
from benchmarks.training_sides import Length, SideRun, run_ours, run_published, run_trainer
from miniplm.errors import ConfigError, describe_reason
from miniplm.models.architectures import build_model, count_parameters
from miniplm.models.devices import resolve_device
from miniplm.models.loading import split_head
from miniplm.models.throughput import count_flops_per_token, measure_matmul_peak

_GIB = 2**30


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("training", __doc__)
    parser.add_argument("--size", choices=SIZES, help="what is trained (default qwen-200m on a GPU, tiny on a CPU)")
    parser.add_argument(
        "--sides",
        default="published,ours,trainer",
        help="which sides, with commas, of published, published-fp16 (weights in fp16, mask of ones), ours, ours-bfloat16 (on a CPU, where "
        "ours is float32), trainer; default published,ours,trainer",
    )
    parser.add_argument("--batch", type=int, help="sequences an optimizer step; default 128 on a GPU, 8 on a CPU")
    parser.add_argument(
        "--published-micro-batch", type=int, default=8, help="sequences a pass of the published side (default 8, as published)"
    )
    parser.add_argument(
        "--micro-batch",
        help="sequences a pass of ours, or several numbers with commas, each a side of its own; default auto, MiniPLM's own choice",
    )
    parser.add_argument("--trainer-micro-batch", type=int, help="sequences a pass of the Trainer; default 32 on a GPU, 8 on a CPU")
    parser.add_argument("--steps", type=int, help="timed steps of each side; default 20 on a GPU, 3 on a CPU")
    parser.add_argument(
        "--warm-up-steps", type=int, help="steps before those, in which compiling falls; default 5 on a GPU, 1 on a CPU"
    )
    parser.add_argument("--length", type=int, help="targets a sequence; default 1024, as published, for tiny 256")
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs of each side, in turn; the best counts, all are recorded (default 1)"
    )
    parser.add_argument("--kd", action="store_true", help="also vanilla KD at micro-batch 8, for its peak memory")
    parser.add_argument(
        "--teacher", choices=RANDOM_MODELS, default="qwen1.5-1.8b", help="its teacher, random weights (default qwen1.5-1.8b)"
    )
    return parser


def _run(arguments: argparse.Namespace, scratch: Path) -> None:
    disable_progress_bar()
    device = resolve_device(arguments.device)
    on_gpu = device.type == "cuda"
    place = describe_place(device)
    size = arguments.size or ("qwen-200m" if on_gpu else "tiny")
    length = Length(
        arguments.batch or (128 if on_gpu else 8),
        arguments.warm_up_steps or (5 if on_gpu else 1),
        arguments.steps or (20 if on_gpu else 3),
    )
    num_targets = arguments.length or (256 if size == "tiny" else 1024)
    ours = [_read_micro_batch(value) for value in (arguments.micro_batch or "auto").split(",")]
    trainer = min(arguments.trainer_micro_batch or (32 if on_gpu else 8), length.batch_size)
    published = min(arguments.published_micro_batch, length.batch_size)
    for passed in (*ours, trainer, published):
        if passed is not None and length.batch_size % passed:
            raise ConfigError(f"--batch {length.batch_size} is not a multiple of the micro-batch {passed}; give multiples")
    inputs = make_training_inputs(scratch / "storage", size, length.batch_size * length.num_steps, num_targets, device)
    model = build_model(inputs.architecture, inputs.vocab_size, num_targets + 1, 0)
    mean_inputs = inputs.num_tokens / inputs.num_sequences - 1
    flops = count_flops_per_token(*split_head(model), mean_inputs)
    common = place | {
        "size": size,
        "num_parameters": count_parameters(model),
        "vocab_size": inputs.vocab_size,
        "sequence_length": num_targets,
        "batch_size": length.batch_size,
        "timed_steps": length.timed_steps,
        "warm_up_steps": length.warm_up_steps,
        # Forward and backward; a sequence has one input fewer than tokens.
        "flops_per_token": None if flops is None else 3 * flops * mean_inputs / (mean_inputs + 1),
    }
    del model
    print(
        f"{size} ({common['num_parameters']:,} parameters) on {place['device']} ({place['processor']}), load {place['load_before']}: "
        f"{length.timed_steps} timed steps of {length.batch_size} sequences of {num_targets} targets"
    )
    # In this order: the Trainer last, as its whole logits may not fit, and what is left of such an attempt would be in the way.
    sides: dict[str, Callable[[], SideRun]] = {
        "published": partial(run_published, inputs, length, published),
        "published-fp16": partial(run_published, inputs, length, published, pure_half=True),
        **{_name_ours(size, ours): partial(run_ours, inputs, length, size) for size in ours},
        "ours-bfloat16": partial(run_ours, inputs, length, ours[0], dtype="bfloat16"),
        "trainer": partial(run_trainer, inputs, length, trainer),
    }
    wanted = arguments.sides.split(",")
    if "ours" in wanted:
        wanted += [_name_ours(size, ours) for size in ours]
    if unknown := set(wanted) - {"ours", *sides}:
        raise ConfigError(f"--sides: there is no side {sorted(unknown)[0]!r}; the sides are {', '.join(sides)}")
    work = {name: side for name, side in sides.items() if name in wanted}
    if arguments.kd:
        teacher = write_teacher(scratch / arguments.teacher, arguments.teacher, device)
        work["vanilla-kd"] = partial(run_ours, inputs, length, min(8, length.batch_size), "vanilla-kd", teacher)
    # The published side's float16 is measured against bfloat16, which is as fast.
    dtypes = ["bfloat16"] if on_gpu else ["float32", *(["bfloat16"] if "ours-bfloat16" in work else [])]
    peaks = {dtype: max(measure_matmul_peak.__wrapped__(device, getattr(torch, dtype)) for _ in range(3)) for dtype in dtypes}
    runs: dict[str, list[tuple[SideRun, float | None]]] = {name: [] for name in work}
    failures: dict[str, str] = {}
    for repeat in range(arguments.repeats):
        for name, side in work.items():
            try:
                runs[name].append(_measure(side, inputs))
            except Exception as error:  # a side that fails is told, and the others are measured all the same
                failures[name] = describe_reason(error)
                print(f"  run {repeat + 1} {name}: FAILED: {failures[name]}", flush=True)
                continue
            run = runs[name][-1][0]
            print(f"  run {repeat + 1} {name}: {run.seconds:.2f} s, {run.num_tokens / run.seconds:,.0f} tokens/s", flush=True)
    rows = [_make_row(name, results, common, peaks) for name, results in runs.items() if results]
    for row in rows:
        for baseline in ("published", "trainer", "ours"):
            other = next((other for other in rows if other["side"] == baseline), None)
            row[f"ratio_to_{baseline}"] = None if other is None else row["tokens_per_second"] / other["tokens_per_second"]
    titles = (
        "side",
        "dtype",
        "micro-batch",
        "tokens/s",
        "x published",
        "x Trainer",
        "x ours",
        "of matmul peak",
        "GiB",
        "start-up s",
        "head",
    )
    print("\n" + format_rows(rows, *titles))
    if arguments.json:
        failed = [{"side": name, "reason": reason} for name, reason in failures.items()]
        append_rows(arguments.json, [{"benchmark": "training"} | common | row for row in [*rows, *failed]])
    if failures:
        raise SystemExit(f"benchmarks.training: {len(failures)} of {len(work)} sides failed: {', '.join(failures)}")


def _read_micro_batch(value: str) -> int | None:
    if value != "auto" and not (value.isdigit() and int(value)):
        raise ConfigError(f"--micro-batch: {value!r} is neither auto nor a number of sequences")
    return None if value == "auto" else int(value)


def _name_ours(size: int | None, sizes: list[int | None]) -> str:
    return "ours" if len(sizes) == 1 else f"ours-{size or 'auto'}"


def _measure(side: Callable[[], SideRun], inputs: TrainingInputs) -> tuple[SideRun, float | None]:
    """A run, and the most GPU memory (GiB) in use at once."""
    gc.collect()
    if inputs.device.type != "cuda":
        return side(), None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(inputs.device)
    run = side()
    return run, torch.cuda.max_memory_allocated(inputs.device) / _GIB


def _make_row(
    name: str, results: list[tuple[SideRun, float | None]], common: dict[str, Any], peaks: dict[str, float]
) -> dict[str, Any]:
    best = max((run for run, _ in results), key=lambda run: run.num_tokens / run.seconds)
    rate, flops = best.num_tokens / best.seconds, common["flops_per_token"]
    peak = peaks.get(best.details["dtype"]) or next(iter(peaks.values()))
    return {
        "side": name,
        "seconds": [run.seconds for run, _ in results],
        "num_tokens": best.num_tokens,
        "tokens_per_second": rate,
        "matmul_peak": peak,
        # With a teacher the student's own products are a part of the work.
        "matmul_peak_share": None if flops is None or name == "vanilla-kd" else rate * flops / peak,
        "gpu_memory_gib": max((memory for _, memory in results if memory is not None), default=None),
        "start_up_seconds": best.start_up_seconds,
        "last_loss": best.last_loss,
    } | best.details


if __name__ == "__main__":
    run_benchmark(_make_parser(), _run)
