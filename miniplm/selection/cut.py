"""The second pass of a selection: what lies above the threshold of its pool is kept and published, shard by shard."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from miniplm.progress import Progress, ProgressCallback
from miniplm.records.manifests import CorpusManifest, ShardEntry
from miniplm.records.selections import SelectionShardEntry
from miniplm.selection.budgets import Pool
from miniplm.selection.candidates import Floats, Integers
from miniplm.selection.connection import count_threads
from miniplm.selection.join import run_in_order
from miniplm.selection.kept import publish_kept
from miniplm.selection.prefixes import RankedRows
from miniplm.selection.survey import Survey
from miniplm.storage.root import Storage

# At a time: a thread waits until its file is on the disk, a hundredth of a second and more on a busy one.
_MOST_WRITES = 8
# Fixed, so that the same rows give the same bytes.
_CHUNK_ROWS = 122_880

SELECTION_SCHEMA = pa.schema(
    [
        ("sequence_id", pa.int64()),
        ("teacher_nll", pa.float64()),
        ("reference_nll", pa.float64()),
        ("difference_score", pa.float64()),
    ]
)
# Beside those of every selection: the value of the expression that is ranked, the key with the noise of a temperature, and how often
# a row is used where a budget repeats them.
STEERED_COLUMNS = {
    **{name: pa.field(name, pa.float64()) for name in ("score", "ranking_key")},
    "repetitions": pa.field("repetitions", pa.int32()),
}


class Cut:
    """Which rows are kept: those above the threshold of their pool, and of those at it the first by id, until it has its number.

    With `num_passes` all that are ranked are kept, used so often, and those once more.
    """

    def __init__(self, ranked: RankedRows, pools: list[Pool], num_passes: int = 0) -> None:
        self.num_passes = num_passes
        self._pool = np.zeros(len(ranked.domains), dtype=np.int64)
        self._thresholds = np.full(len(pools), math.inf)
        self._num_ties = np.zeros(len(pools), dtype=np.int64)
        for number, pool in enumerate(pools):
            self._pool[pool.domains] = number
            if pool.num_kept:
                rank = pool.num_candidates - pool.num_kept
                (threshold,) = ranked.keys.find(pool.domains, [rank])
                num_above = pool.num_candidates - ranked.keys.count_at_most(pool.domains, threshold)
                self._thresholds[number], self._num_ties[number] = threshold, pool.num_kept - num_above

    def find_kept(self, domains: Integers, keys: Floats) -> Integers:
        """The rows (num_kept,) of the next shard that are kept, ascending, of all (num_sequences,), by ranking keys, NaN where a row is left out. Shards are asked for in the order of their ids."""
        if len(self._thresholds) == 1:
            pools, threshold = None, self._thresholds[0]
        else:
            pools = self._pool[domains]
            threshold = self._thresholds[pools]
        kept = keys > threshold
        ties = np.flatnonzero(keys == threshold)
        tied = np.zeros(len(ties), dtype=np.int64) if pools is None else pools[ties]
        for pool in np.unique(tied):
            rows = ties[tied == pool][: self._num_ties[pool]]
            kept[rows] = True
            self._num_ties[pool] -= len(rows)
        return np.flatnonzero(kept)

    def find_uses(self, domains: Integers, keys: Floats) -> tuple[Integers, Integers | None]:
        """As `find_kept`, and how often each of the kept is used, (num_kept,) each; None where none is repeated."""
        best = self.find_kept(domains, keys)
        if not self.num_passes:
            return best, None
        uses = np.where(np.isnan(keys), 0, self.num_passes).astype(np.int32)
        uses[best] += 1
        rows = np.flatnonzero(uses)
        return rows, uses[rows]


class KeptDomains:
    """What was kept of each domain, (num_domains,) each; `threshold` is the least difference score, infinite where none was."""

    def __init__(self, num_domains: int) -> None:
        self.num_sequences: NDArray[np.int64] = np.zeros(num_domains, dtype=np.int64)
        self.num_tokens: NDArray[np.int64] = np.zeros(num_domains, dtype=np.int64)
        self.threshold: Floats = np.full(num_domains, math.inf)

    def add(self, domains: Integers, num_tokens: Integers, difference_score: Floats) -> None:
        """Counts kept sequences, (num_kept,) each."""
        size = len(self.num_sequences)
        self.num_sequences += np.bincount(domains, minlength=size)
        self.num_tokens += np.bincount(domains, weights=num_tokens, minlength=size).astype(np.int64)
        np.minimum.at(self.threshold, domains, difference_score)


def publish_shards(
    storage: Storage,
    corpus: CorpusManifest,
    survey: Survey,
    selection_id: str,
    cut: Cut,
    kept_domains: KeptDomains,
    on_progress: ProgressCallback,
) -> Iterator[SelectionShardEntry]:
    """Publishes what is kept of each candidate shard, in their order; files are written in threads beside the reading."""
    shards = corpus.split_shards("candidate")

    def cut_shards() -> Iterator[tuple[ShardEntry, pa.Table, Integers]]:
        for shard in shards:
            domains, num_tokens = survey.read_sequences(shard)
            scores = survey.read_scores(storage, shard)
            keys = survey.read_keys(shard, scores)
            rows, repetitions = cut.find_uses(domains, keys.ranking_key)
            kept_domains.add(domains[rows], num_tokens[rows], keys.difference[rows])
            columns = {
                "sequence_id": shard.first_sequence_id + rows,
                "teacher_nll": scores.teacher_nll[rows],
                "reference_nll": scores.reference_nll[rows],
                "difference_score": keys.difference[rows],
            }
            if keys.expression is not None:
                columns["score"] = keys.expression[rows]
            if survey.keys.config.temperature:
                columns["ranking_key"] = keys.ranking_key[rows]
            if repetitions is not None:
                columns["repetitions"] = repetitions
            yield shard, _make_table(columns), num_tokens[rows].astype(np.int64)

    def publish(item: tuple[ShardEntry, pa.Table, Integers]) -> SelectionShardEntry:
        shard, table, num_tokens = item
        return publish_kept(storage, selection_id, shard, table, table, num_tokens)

    for done, entry in enumerate(run_in_order(publish, cut_shards(), max(_MOST_WRITES, count_threads(storage))), start=1):
        yield entry
        on_progress(Progress("select", done, len(shards), "shards"))


def _make_table(columns: dict[str, NDArray[Any]]) -> pa.Table:
    """The columns (num_kept,) by name, in chunks, whose ends decide where Parquet pages end."""
    starts = range(0, max(1, len(columns["sequence_id"])), _CHUNK_ROWS)
    steered = [STEERED_COLUMNS[name] for name in columns if name in STEERED_COLUMNS]
    schema = pa.schema([*SELECTION_SCHEMA, *steered])
    chunks = [
        # Not `pa.array`, which imports pandas where it is installed: a third of a second.
        pa.chunked_array([_wrap(column[start : start + _CHUNK_ROWS], kind) for start in starts], kind)
        for column, kind in zip(columns.values(), schema.types, strict=True)
    ]
    return pa.Table.from_arrays(chunks, schema=schema)


def _wrap(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Values (num_values,) without NULLs, not copied."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
