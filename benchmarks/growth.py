"""What a run costs beside its tokens: the work a shard, in seconds and bytes, at several numbers of shards, so that what grows faster shows.

Sizes are those of real corpora by their shards (64 M tokens each): 16 shards are 1 B tokens, 1,563 the Pile's 100 B, 149,254 are 10 T.
Files are real in all but their content: manifests as long as in a run, score files of a few rows (what reading whole ones costs is in `benchmarks.selection`).

    python -m benchmarks.growth --shards 16 1563 20000
    python -m benchmarks.growth --shards 149254 --what manifest state table
    python -m benchmarks.growth --shards 1563 --storage s3://bucket/growth   # wall seconds: a store makes one wait, not compute
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.corpora import describe_corpus, name_tokenizer
from benchmarks.records import Rows, describe_place, format_table, make_parser, run_benchmark
from benchmarks.selection_inputs import write_scores
from miniplm import layout
from miniplm.corpus.state import PreparationState
from miniplm.records.manifests import CorpusManifest, ShardEntry
from miniplm.scoring import shards as score_shards
from miniplm.storage.root import Storage
from tasks.tables import _make_row

TEACHER = "teacher"
SHARD_TOKENS = 65_360 * 1025
_ROWS = 4


def make_manifest(num_shards: int) -> CorpusManifest:
    """A corpus of so many candidate shards, whose entries are as long as real ones."""
    shards = tuple(
        ShardEntry(
            corpus_id="synthetic",
            split="candidate",
            shard_index=index,
            digest=f"sha256:{index:064x}",
            num_bytes=90_000_000 + index,
            num_sequences=_ROWS,
            num_tokens=SHARD_TOKENS,
            first_sequence_id=index * _ROWS,
        )
        for index in range(num_shards)
    )
    return describe_corpus("synthetic", name_tokenizer(50_000), 1024, shards)


def measure_manifest(storage: Storage, corpus: CorpusManifest) -> dict[str, float]:
    """The corpus's manifest, which every process reads once."""
    path = layout.corpus_manifest(corpus.corpus_id)
    written = _time(lambda: storage.write_json(path, corpus.as_json()))
    read = _time(lambda: CorpusManifest.model_validate(storage.read_json(path)))
    return {"manifest MB": storage.size_bytes(path) / 1e6, "manifest write s": written, "manifest read s": read}


def measure_state(storage: Storage, corpus: CorpusManifest) -> dict[str, float]:
    """The state of a preparation, as it is written while the last shard is made."""
    state = PreparationState(
        versions={},
        num_records_checked=0,
        rejected={},
        rejected_by_file={},
        num_quarantine_files=0,
        sources=(),
        shards=corpus.shards,
        splits={},
    )
    return {"state write s": _time(lambda: storage.write_json(layout.corpus_preparation(corpus.corpus_id), state.as_json()))}


def measure_scores(storage: Storage, corpus: CorpusManifest) -> dict[str, float]:
    """What status, a run that goes on, and a selection look at: every score manifest, first and once more in the same process."""
    with ThreadPoolExecutor(16) as pool:  # a thread waits for the disk most of the time
        num_scored, nll_sum = np.full(_ROWS, 1024, np.int32), np.full(_ROWS, 2048.0)
        list(pool.map(lambda shard: write_scores(storage, shard, TEACHER, num_scored, nll_sum), corpus.shards))
    folder = layout.scores_folder(corpus.corpus_id, TEACHER)
    return {
        "listing s": _time(lambda: storage.list_names(folder)),
        "check scores s": _time(lambda: score_shards.check_score_shards(storage, corpus, TEACHER)),
        "check again s": _time(lambda: score_shards.check_score_shards(storage, corpus, TEACHER)),
        "read manifests s": _time(lambda: score_shards.find_score_manifests(storage, corpus, TEACHER)),
    }


def measure_table(storage: Storage, corpus: CorpusManifest) -> dict[str, float]:
    """The rows of the shard table, which a fleet's parent makes once a minute."""
    return {"table s": _time(lambda: [_make_row(shard, {}, {}, {}) for shard in corpus.shards])}


MEASURES: dict[str, Callable[[Storage, CorpusManifest], dict[str, float]]] = {
    "manifest": measure_manifest,
    "state": measure_state,
    "scores": measure_scores,
    "table": measure_table,
}


def _time(work: Callable[[], Any]) -> float:
    started = _clock()
    work()
    return _clock() - started


# CPU seconds on a local disk, where other work may share the cores; on a store, where waiting is what costs, those of the clock.
_clock: Callable[[], float] = time.process_time


def measure(storage: Storage, num_shards: int, what: list[str]) -> dict[str, float]:
    """Seconds by what took them, at one number of shards."""
    global _clock
    _clock = time.process_time if storage.is_local else time.perf_counter
    corpus = make_manifest(num_shards)
    return {name: value for key in what for name, value in MEASURES[key](storage, corpus).items()}


def work(arguments: argparse.Namespace, scratch: Path) -> Rows:
    place = describe_place(torch.device("cpu"))
    rows = []
    for num_shards in arguments.shards:
        root = f"{arguments.storage or scratch}/{num_shards}"
        found = measure(Storage(root), num_shards, arguments.what)
        rows.append(
            {
                "benchmark": "growth",
                **place,
                "is_store": arguments.storage is not None,
                "num_shards": num_shards,
                "num_tokens": num_shards * SHARD_TOKENS,
                **found,
            }
        )
    names = [name for name in rows[0] if name.endswith((" s", " MB"))]
    table = [[name, *(f"{row[name]:,.3f}" for row in rows)] for name in names]
    print(
        format_table(
            ["seconds at" if arguments.storage else "CPU seconds at", *(f"{row['num_shards']:,} shards" for row in rows)], table
        )
    )
    return rows


if __name__ == "__main__":
    parser = make_parser("growth", __doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[16, 1563], help="numbers of candidate shards")
    parser.add_argument("--what", nargs="+", choices=list(MEASURES), default=list(MEASURES), help="what is measured")
    parser.add_argument("--storage", help="storage root on a store, e.g. s3://bucket/prefix; default: a folder that is deleted")
    raise SystemExit(run_benchmark(parser, work))
