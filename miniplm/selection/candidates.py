"""One candidate shard with the scores of both models, joined by position and proven to be in order: what a selection reads.

The ids of a shard are contiguous, so its files are joined row by row, and that they may be is seen from the ids themselves. For
10 M rows this takes 0.4 s of CPU, DuckDB's positional join 0.9 s (2026-11-28, EPYC), most of it to make values of its own;
everything that asks for SQL gets the same rows as a DuckDB view (`join`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from miniplm import layout
from miniplm.corpus.reader import REPAIR_SHARD
from miniplm.errors import CorpusError, DamagedFileError, ScoreJoinError, first_line
from miniplm.records.manifests import ScoreShardManifest, ShardEntry
from miniplm.scoring.shards import MOST_NLL_SUM, parse_scores
from miniplm.storage.root import Storage

ScoreKind = Literal["mean", "sum"]
Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ShardScores:
    """What both models gave the sequences of a shard, in the order of their ids: (num_sequences,) each, NLL sums in nats."""

    num_scored_tokens: Integers
    teacher_nll_sum: Floats
    reference_nll_sum: Floats

    @cached_property
    def teacher_nll(self) -> Floats:  # (num_sequences,)
        return self.teacher_nll_sum / np.maximum(self.num_scored_tokens, 1)

    @cached_property
    def reference_nll(self) -> Floats:  # (num_sequences,)
        return self.reference_nll_sum / np.maximum(self.num_scored_tokens, 1)

    def difference_score(self, kind: ScoreKind) -> Floats:
        """Reference less teacher (num_sequences,), in nats a scored token (`mean`, MiniPLM's r(x)) or a sequence (`sum`)."""
        if kind == "sum":
            return self.reference_nll_sum - self.teacher_nll_sum
        return self.reference_nll - self.teacher_nll


@dataclass(frozen=True)
class ShardSequences:
    """Domain and length of the sequences of a shard, in the order of their ids: (num_sequences,) each.

    `domains` are the places of their names in `domain_names`, which has no name twice and only those that occur.
    """

    domains: Integers
    domain_names: tuple[str, ...]
    num_tokens: Integers
    is_in_place: bool


ReadScores = Callable[[ShardEntry, ScoreShardManifest], bytes]


def join_scores(
    shard: ShardEntry, teacher: ScoreShardManifest, reference: ScoreShardManifest, read: ReadScores
) -> tuple[ShardScores, bool]:
    """The scores of a shard, from the bytes that `read` gives, and whether the rows of both files stand in the order of their ids.

    Raises `ScoreJoinError` unless each sequence has one finite score from each model, over the same number of tokens.
    """
    columns, in_place = [], True
    for role, manifest in (("teacher", teacher), ("reference", reference)):
        name = f"{layout.shard_name(shard.shard_index)} has broken {role} scores"
        table = _read_table(shard, role, manifest, read)
        if table["nll_sum"].null_count or table["num_scored_tokens"].null_count or table["sequence_id"].null_count:
            raise ScoreJoinError(f"{name}: some are NULL")
        order = _find_order(_join_chunks(table["sequence_id"]), shard)
        if order is None:
            raise ScoreJoinError(f"{name}: its rows are not one for each of the shard's {shard.num_sequences} sequences")
        counts, sums = (_join_chunks(table[column])[order] for column in ("num_scored_tokens", "nll_sum"))
        if not -MOST_NLL_SUM < sums.min(initial=0.0) <= sums.max(initial=0.0) < MOST_NLL_SUM or counts.min(initial=0) < 0:
            raise ScoreJoinError(f"{name}: some are not finite, or beyond {MOST_NLL_SUM:g}")
        columns.append((counts, sums))
        in_place = in_place and isinstance(order, slice)
    (num_scored_tokens, teacher_sums), (others, reference_sums) = columns
    if not np.array_equal(num_scored_tokens, others):
        raise ScoreJoinError(
            f"{layout.shard_name(shard.shard_index)} has other scored tokens under the teacher than under the reference"
        )
    return ShardScores(num_scored_tokens, teacher_sums, reference_sums), in_place


def read_again(shard: ShardEntry, teacher: ScoreShardManifest, reference: ScoreShardManifest, read: ReadScores) -> ShardScores:
    """The scores of a shard that `join_scores` has proven and found in the order of their ids: `read` has to give the same bytes, of which
    half is not looked at again."""
    ours = _read_table(shard, "teacher", teacher, read, ["num_scored_tokens", "nll_sum"])
    others = _read_table(shard, "reference", reference, read, ["nll_sum"])
    return ShardScores(*map(_join_chunks, (ours["num_scored_tokens"], ours["nll_sum"], others["nll_sum"])))


def _read_table(
    shard: ShardEntry, role: str, manifest: ScoreShardManifest, read: ReadScores, columns: list[str] | None = None
) -> pa.Table:
    try:
        return parse_scores(read(shard, manifest), columns)
    except DamagedFileError as error:
        raise ScoreJoinError(f"{layout.shard_name(shard.shard_index)} has broken {role} scores: {error}") from error


def read_sequences(storage: Storage, shard: ShardEntry) -> ShardSequences:
    """Domains and lengths out of a corpus shard, of which no other column is read; its digest is not looked at.

    Raises `CorpusError` where it cannot be read, or does not hold the sequences that the corpus manifest says.
    """
    relative = layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index)
    try:
        # Not mapped: a file that is cut while it is read must not end the process.
        with pa.OSFile(storage.path(relative)) if storage.is_local else storage.open(relative) as file:
            table = pq.ParquetFile(file).read(columns=["sequence_id", "domain", "num_tokens"], use_threads=False)
            ids, num_tokens, domain = table["sequence_id"], table["num_tokens"], table["domain"]
            has_nulls = ids.null_count or num_tokens.null_count or domain.null_count
    except (pa.ArrowException, FileNotFoundError, KeyError) as error:
        raise CorpusError(f"{storage.url(relative)} cannot be read ({first_line(error)}). {REPAIR_SHARD}") from error
    are_numbers = pa.types.is_integer(ids.type) and pa.types.is_integer(num_tokens.type) and not has_nulls
    order = _find_order(_join_chunks(ids), shard) if are_numbers else None
    if order is None:
        raise CorpusError(f"{storage.url(relative)} does not hold the sequences that the corpus manifest says")
    # A row group has a dictionary of its own; a file of another writer may have none.
    encoded = domain if pa.types.is_dictionary(domain.type) else domain.dictionary_encode()
    unified = encoded.unify_dictionaries()
    names: list[str] = unified.chunk(0).dictionary.to_pylist() if unified.num_chunks else []
    domains = _join_chunks(pa.chunked_array([chunk.indices for chunk in unified.chunks], unified.type.index_type))
    used = np.flatnonzero(np.bincount(domains, minlength=len(names)))
    # In few bytes, since rows are sorted by it.
    renumbered = np.zeros(len(names), dtype=np.min_scalar_type(len(used)))
    renumbered[used] = np.arange(len(used))
    return ShardSequences(
        renumbered[domains[order]], tuple(names[place] for place in used), _join_chunks(num_tokens)[order], isinstance(order, slice)
    )


def _join_chunks(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of numbers without NULLs, (num_rows,), not copied where it is of one chunk. PyArrow's own way imports pandas, where that is
    installed, which takes a third of a second."""
    chunks = [np.from_dlpack(chunk) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.zeros(0, column.type.to_pandas_dtype()), *chunks])


def _find_order(sequence_ids: Integers, shard: ShardEntry) -> slice | Integers | None:
    """What brings rows into the order of their ids; None where they are not one for each sequence of the shard."""
    wanted = np.arange(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
    if np.array_equal(sequence_ids, wanted):
        return slice(None)
    order = np.argsort(sequence_ids, kind="stable")
    return order if np.array_equal(sequence_ids[order], wanted) else None
