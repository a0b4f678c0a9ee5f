"""Seconds and memory of a selection, beside one read of what it needs, the SQL that it was until 2026-11-28, and a sort in memory.

Sides, each a process of its own (so that its most memory is its own), repeated; the least seconds count:

    read         every column that a selection needs, of all files, once, summed by DuckDB
    ours         `select_sequences`: proofs, digests, domains, quantiles, files written and synced
    sql          hash joins of ids, a sort of all rows, quantiles of whole columns, in DuckDB; the same files
    what-if      `try_selections` of 36: nine ratios, of all and of each domain, without and with noise; nothing is written
    tokens, mix, temperature, expression
                 ours by another rule: half of the tokens; shares of two domains; drawn with noise; SQL that is ranked, with a condition
    torch-sort   the published script: all differences in one tensor, sorted; its ids are kept in memory, nothing is proven or written

CPU seconds are those of all threads; where other work shares the cores, only they can be compared.

    python -m benchmarks.selection --rows 1000000 10000000 --sides read ours sql torch-sort
    python -m benchmarks.selection --rows 10000000 --sides read ours what-if
    python -m benchmarks.selection --rows 100000000 --sides read ours
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.records import (
    Rows,
    add_sides,
    describe_place,
    format_rows,
    make_parser,
    measure_apart,
    measure_work,
    repeat_sides,
    run_benchmark,
)
from benchmarks.selection_inputs import REFERENCE, TEACHER, write_scored_corpus
from miniplm import layout
from miniplm.config.run import SelectionConfig
from miniplm.records.manifests import CorpusManifest
from miniplm.selection.budgets import count_selected
from miniplm.selection.connection import connect
from miniplm.selection.cut import SELECTION_SCHEMA
from miniplm.selection.ranking import QUANTILES, select_sequences
from miniplm.selection.scans import scan_parquet
from miniplm.selection.what_if import try_selections
from miniplm.storage.root import Storage, digest_file

_RATIO = 0.5
Ids = NDArray[np.int64]


def _scan(storage: Storage, corpus: CorpusManifest, model_id: str | None = None) -> str:
    """The corpus shards, or the scores of a model, in SQL."""
    shards = corpus.split_shards("candidate")
    if model_id is None:
        return scan_parquet(storage, [layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index) for shard in shards])
    return scan_parquet(storage, [layout.score_shard(shard.corpus_id, model_id, shard.shard_index) for shard in shards])


def read_once(storage: Storage, corpus: CorpusManifest) -> None:
    with connect(storage) as connection:
        connection.execute(
            f"SELECT sum(sequence_id), max(domain), sum(num_tokens) FROM {_scan(storage, corpus)} "
            f"UNION ALL SELECT sum(sequence_id), NULL, sum(num_scored_tokens) + sum(nll_sum) FROM {_scan(storage, corpus, TEACHER)} "
            f"UNION ALL SELECT sum(sequence_id), NULL, sum(num_scored_tokens) + sum(nll_sum) FROM {_scan(storage, corpus, REFERENCE)}"
        ).fetchall()


def select_ours(storage: Storage, corpus: CorpusManifest, **rule: Any) -> Callable[[], Iterable[Ids]]:
    if not {"ratio", "tokens"} & set(rule):
        rule["ratio"] = _RATIO
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig.model_validate(rule))

    def read_ids() -> Iterator[Ids]:
        for shard in manifest.shards:
            with storage.open(layout.selection_shard(manifest.selection_id, shard.shard_index)) as file:
                yield pq.read_table(file, columns=["sequence_id"])["sequence_id"].to_numpy()

    return read_ids


def select_by_tokens(storage: Storage, corpus: CorpusManifest) -> Callable[[], Iterable[Ids]]:
    return select_ours(storage, corpus, tokens=sum(shard.num_tokens for shard in corpus.split_shards("candidate")) // 2)


def select_by_sql(storage: Storage, corpus: CorpusManifest) -> Callable[[], Iterable[Ids]]:
    shards = corpus.split_shards("candidate")
    num_selected = count_selected(sum(shard.num_sequences for shard in shards), _RATIO)
    nll = "{0}.nll_sum / greatest({0}.num_scored_tokens, 1)".format
    queries = [
        "SELECT count(*), count(DISTINCT sequence_id), sum(num_tokens) FROM candidates",
        *(f"SELECT count(*) FROM candidates ANTI JOIN {role} USING (sequence_id)" for role in (TEACHER, REFERENCE)),
        *(f"SELECT sequence_id FROM {role} GROUP BY sequence_id HAVING count(*) > 1" for role in (TEACHER, REFERENCE)),
        *(f"SELECT count(*) FROM {role} ANTI JOIN candidates USING (sequence_id)" for role in (TEACHER, REFERENCE)),
        f"SELECT count(*) FROM {TEACHER} t JOIN {REFERENCE} r USING (sequence_id) WHERE t.num_scored_tokens <> r.num_scored_tokens",
        f"CREATE TEMP TABLE scores AS SELECT sequence_id, domain, num_tokens, {nll(TEACHER)} AS teacher_nll, {nll(REFERENCE)} AS "
        "reference_nll, reference_nll - teacher_nll AS difference_score "
        f"FROM candidates JOIN {TEACHER} USING (sequence_id) JOIN {REFERENCE} USING (sequence_id)",
        "CREATE TEMP TABLE selected AS SELECT * FROM (SELECT * FROM scores ORDER BY difference_score DESC, sequence_id "
        f"LIMIT {num_selected}) ORDER BY sequence_id",
        f"SELECT domain, count(*), sum(num_tokens), avg(teacher_nll), avg(reference_nll), quantile_cont(difference_score, {list(QUANTILES)}) "
        "FROM scores GROUP BY domain",
    ]
    with connect(storage) as connection:
        connection.execute(f"CREATE TEMP VIEW candidates AS SELECT sequence_id, domain, num_tokens FROM {_scan(storage, corpus)}")
        for role in (TEACHER, REFERENCE):
            connection.execute(f"CREATE TEMP VIEW {role} AS SELECT * FROM {_scan(storage, corpus, role)}")
        for query in queries:
            connection.execute(query).fetchall()
        kept = []
        for shard in shards:
            rows = connection.sql(
                "SELECT sequence_id, teacher_nll, reference_nll, difference_score FROM selected WHERE sequence_id BETWEEN "
                f"{shard.first_sequence_id} AND {shard.first_sequence_id + shard.num_sequences - 1} ORDER BY sequence_id"
            ).to_arrow_table()
            with storage.publish(f"selections/sql/shard-{shard.shard_index:05d}.parquet") as path:
                pq.write_table(rows.cast(SELECTION_SCHEMA), path, compression="zstd")
                digest_file(path)
            kept.append(rows["sequence_id"].to_numpy())
    return lambda: kept


def select_by_torch_sort(storage: Storage, corpus: CorpusManifest) -> Callable[[], Iterable[Ids]]:
    nll = []
    for model_id in (TEACHER, REFERENCE):
        tables = []
        for shard in corpus.split_shards("candidate"):
            with storage.open(layout.score_shard(shard.corpus_id, model_id, shard.shard_index)) as file:
                tables.append(pq.read_table(file, columns=["num_scored_tokens", "nll_sum"]))
        table = pa.concat_tables(tables)
        nll.append(torch.from_numpy(table["nll_sum"].to_numpy() / table["num_scored_tokens"].to_numpy()))
    order = torch.sort(nll[1] - nll[0], descending=True, stable=True).indices
    kept = torch.sort(order[: count_selected(len(order), _RATIO)]).values.numpy()
    return lambda: [kept]


def try_grid(storage: Storage, corpus: CorpusManifest) -> None:
    try_selections(
        storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=_RATIO), "ratio=0.1:0.9,within=corpus|domain,temperature=0|0.1"
    )


SIDES: dict[str, Callable[[Storage, CorpusManifest], Any]] = {
    "read": read_once,
    "ours": select_ours,
    "sql": select_by_sql,
    "what-if": try_grid,
    "torch-sort": select_by_torch_sort,
    "tokens": select_by_tokens,
    "mix": partial(select_ours, mix={"domain-00": {"at_most": 0.1}, "domain-05": 0.08}),
    "temperature": partial(select_ours, temperature=0.5),
    "expression": partial(select_ours, score="difference_score + 0.1 * ln(num_tokens)", where="num_scored_tokens > 10"),
}
# Those that keep the same, by the published rule.
SAME_SIDES = ("ours", "sql", "torch-sort")


def measure_side(side: str, root: str) -> dict[str, Any]:
    """One side in this process: seconds by the clock and of all threads, most resident memory, and the sum of the kept ids."""
    storage = Storage(root)
    corpus = CorpusManifest.model_validate(storage.read_json(layout.corpus_manifest("synthetic")))
    storage.delete("selections")
    read_ids, used = measure_work(lambda: SIDES[side](storage, corpus))
    kept = None if read_ids is None else [(len(ids), int(ids.sum())) for ids in read_ids()]
    return {
        "side": side,
        **used,
        "num_kept": None if kept is None else sum(num_ids for num_ids, _ in kept),
        "sum_of_ids": None if kept is None else sum(sum_of_ids for _, sum_of_ids in kept),
    }


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("selection", __doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="candidate sequences; 42 bytes each on the disk")
    add_sides(parser, SIDES, ["read", *SAME_SIDES])
    parser.add_argument("--repeats", type=int, default=3, help="the least seconds of so many count")
    parser.add_argument(
        "--storage", help="storage root for the scores, local or s3://; default a folder that is deleted afterwards"
    )
    parser.add_argument(
        "--coarse", action="store_true", help="NLLs in steps of 1/256 nat, compressed: 7 bytes a sequence, and ties by the thousand"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the scores at --storage, where another call finds them, or goes on writing them"
    )
    return parser


def _run(arguments: argparse.Namespace, scratch: Path) -> Rows:
    rows = []
    for num_rows in arguments.rows:
        root = f"{arguments.storage or scratch}/{num_rows}"
        place = describe_place(torch.device("cpu"))
        corpus = write_scored_corpus(Storage(root), num_rows, coarse=arguments.coarse)
        Storage(root).write_json(layout.corpus_manifest(corpus.corpus_id), corpus.as_json())
        found = repeat_sides(arguments.sides, arguments.repeats, partial(measure_apart, "selection", ["--storage", root]))
        what = {"size": f"{num_rows:,}", "values": "steps of 1/256 nat" if arguments.coarse else "float32"}
        rows += [{"benchmark": "selection", **what, **place, **row} for row in found]
        if not arguments.keep:
            Storage(root).delete("")
    for row in rows:
        reads = [other for other in rows if other["side"] == "read" and other["size"] == row["size"] and "cpu_seconds" in other]
        if reads and "cpu_seconds" in row:
            row["ratio_to_read"] = row["cpu_seconds"] / reads[0]["cpu_seconds"]
    print(format_rows(rows, "what", "side", "seconds", "CPU s", "x read", "host GiB"))
    return rows


if __name__ == "__main__":
    run_benchmark(_make_parser(), _run, lambda arguments: measure_side(arguments.measure, arguments.storage))
