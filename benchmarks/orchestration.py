"""What orchestration costs: time outside scoring, a shard and a flow run, in this process and on a work pool.

Scores the same tiny shards twice with a tiny random model: by `score-corpus` in this process, and by flow runs of
`score-shards` on the workers of a fleet that runs (deployments/local-fleet.sh start). Of each flow run it takes how long its
worker was held, less the seconds in which the model had the device; over flow runs of one shard and of many a line is
fitted, whose offset is the cost of a flow run and whose slope that of a shard. From these it computes which share of the
scoring time they would be for shards of 64 M tokens, at rates that are assumed, not measured, in batches as a run makes them.

    eval "$(deployments/local-fleet.sh env)"
    python -m benchmarks.orchestration --shards 2000
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.corpora import name_tokenizer
from benchmarks.records import Rows, describe_place, format_table, make_parser, run_benchmark
from benchmarks.scoring_inputs import write_corpus
from miniplm import layout
from miniplm.config.files import check_config
from miniplm.config.run import RunConfig
from miniplm.errors import ConfigError
from miniplm.models.identity import identify_model
from miniplm.records.manifests import CorpusManifest, ModelEntry, ScoreShardManifest
from miniplm.run.plan import RunPlan
from miniplm.scoring.shards import check_score_shards
from miniplm.storage.root import Storage

_VOCAB_SIZE = 256
_LENGTH = 16
_SHARD_TOKENS = 64e6
_RATES = (10_000, 100_000, 300_000)


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("orchestration", __doc__)
    parser.add_argument("--shards", type=int, default=2000, help="tiny shards that each side scores (default 2000)")
    parser.add_argument("--sequences", type=int, default=2, help="sequences a shard (default 2)")
    parser.add_argument(
        "--load-seconds", type=float, default=30.0, help="assumed load and compile time of a real model (default 30)"
    )
    parser.add_argument("--sides", choices=["both", "local", "work-pool"], default="both", help="what is measured (default both)")
    return parser


def _run(arguments: argparse.Namespace, scratch: Path) -> Rows:
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError('start a fleet (deployments/local-fleet.sh start), then eval "$(deployments/local-fleet.sh env)"')
    place = describe_place(torch.device("cpu"))
    model = _write_model(scratch / "model")
    rows = []
    for fan_out in ("local", "work-pool") if arguments.sides == "both" else (arguments.sides,):
        storage = Storage(str(scratch / fan_out))
        corpus, config = _write_corpus(storage, arguments), _make_config(storage, model, fan_out)
        entry = identify_model(model, str(model), "float32")
        rows.append({"side": fan_out, "shards": arguments.shards} | _measure(config, corpus, entry) | place)
    pool = rows[-1]
    rates: list[list[str]] = []
    for rate in _RATES if pool["side"] == "work-pool" else ():
        seconds = _SHARD_TOKENS / rate
        start = pool["flow_run_seconds"] + arguments.load_seconds
        batch = max(1, -(-start // (0.01 * seconds)))
        share = (pool["shard_seconds"] + start / batch) / seconds
        rates.append([f"{rate:,}", f"{seconds:,.0f}", f"{batch:.0f}", f"{share:.3%}", f"{pool['shard_seconds'] / seconds:.4%}"])
        pool[f"share_at_{rate}"] = share
    header = [
        "side",
        "shards",
        "wall s",
        "scoring s",
        "outside scoring, ms a shard",
        "ms a shard (fit)",
        "s a flow run (fit)",
        "flow runs",
    ]
    print(format_table(header, [_cells(row) for row in rows]))
    if rates:
        print(f"\nShards of 64 M tokens, a model that loads in {arguments.load_seconds:.0f} s; the rates are assumed:\n")
        print(
            format_table(["tokens/s (assumed)", "s a shard", "shards a flow run", "outside scoring", "of that shards alone"], rates)
        )
    print(
        f"\n{place['processor']}, {place['device']}, load before {place['load_before']}, commit {place['commit']}, dirty {place['dirty']}"
    )
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    outside = f"{1000 * (row['wall_seconds'] - row['scoring_seconds'] / row['num_workers']) / row['shards']:.1f}"
    return [
        row["side"],
        f"{row['shards']:,}",
        f"{row['wall_seconds']:.1f}",
        f"{row['scoring_seconds']:.1f}",
        outside,
        f"{1000 * row['shard_seconds']:.1f}",
        f"{row['flow_run_seconds']:.1f}" if row["flow_run_seconds"] is not None else "n/a",
        str(row["num_flow_runs"]),
    ]


def _measure(config: RunConfig, corpus: CorpusManifest, entry: ModelEntry) -> dict[str, Any]:
    from prefect.client.orchestration import get_client

    from flows.score_corpus import score_corpus
    from flows.work_pool import fleet

    num_workers = fleet.count_workers("score-shards")[0] if config.is_on_work_pool else 1
    began = time.perf_counter()
    score_corpus(RunPlan.of(config), corpus.corpus_id, entry, "teacher")
    wall = time.perf_counter() - began
    storage = Storage(config.storage)
    manifests = {state.shard_index: state.manifest for state in check_score_shards(storage, corpus, entry.model_id)}
    scoring = sum(manifest.seconds for manifest in manifests.values() if manifest is not None)
    num_scored = sum(manifest is not None for manifest in manifests.values())
    measured: dict[str, Any] = {
        "num_shards_scored": num_scored,
        "wall_seconds": wall,
        "scoring_seconds": scoring,
        "num_workers": num_workers,
    }
    if not config.is_on_work_pool:
        return measured | {"shard_seconds": (wall - scoring) / len(manifests), "flow_run_seconds": None, "num_flow_runs": 0}
    points = []
    with get_client(sync_client=True) as client:
        for run in _list_batches(client, config.name):
            indices = run.parameters["shard_indices"]
            # From the moment a worker takes it (pending) to its end the worker can do nothing else.
            states = client.read_flow_run_states(run.id)
            taken = min(state.timestamp for state in states if state.type.value == "PENDING")
            ended = max(state.timestamp for state in states)
            points.append((len(indices), (ended - taken).total_seconds() - _sum_seconds(manifests, indices)))
    slope, offset = np.polyfit([n for n, _ in points], [seconds for _, seconds in points], 1)
    return measured | {"shard_seconds": float(slope), "flow_run_seconds": float(offset), "num_flow_runs": len(points)}


def _sum_seconds(manifests: dict[int, ScoreShardManifest | None], indices: list[int]) -> float:
    return sum(manifest.seconds for index in indices if (manifest := manifests[index]) is not None)


def _list_batches(client: Any, run_name: str) -> list[Any]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    return list(client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[f"run:{run_name}"])), limit=200))


def _write_model(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


def _write_corpus(storage: Storage, arguments: argparse.Namespace) -> CorpusManifest:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, _VOCAB_SIZE, _LENGTH + 1, dtype=np.uint32) for _ in range(arguments.shards * arguments.sequences)]
    corpus = write_corpus(storage, sequences, arguments.shards, name_tokenizer(_VOCAB_SIZE), _LENGTH)
    storage.write_json(layout.corpus_manifest(corpus.corpus_id), corpus.as_json())
    return corpus


def _make_config(storage: Storage, model: Path, fan_out: str) -> RunConfig:
    content = {
        "name": f"orchestration-{os.getpid()}",
        "storage": storage.root,
        "corpus": {"sources": [{"path": "/none", "domain_name": "random"}], "tokenizer": "random", "sequence_length": _LENGTH},
        "teacher": {"model": str(model), "dtype": "float32"},
        "reference": {"model": str(model), "dtype": "float32"},
        "execution": {"fan_out": fan_out},
    }
    return check_config(content, "benchmarks.orchestration")


if __name__ == "__main__":
    run_benchmark(_make_parser(), _run)
