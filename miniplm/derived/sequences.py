"""Sequences that are trained on, a corpus's own or derived ones: which rows of which shard, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from miniplm.corpus.reader import read_shard
from miniplm.derived.reader import read_derived_shard
from miniplm.derived.recipes import DerivedShard
from miniplm.records.manifests import ShardEntry
from miniplm.storage.root import Storage


@dataclass(frozen=True)
class TrainingShard:
    """The sequences of one shard that are trained on: all, or the rows that `load_rows` gives, (num_sequences,) ascending.

    The shard is of a corpus, or of a set that was derived from one. Where a budget repeats sequences, `number` is the pass over
    them, from 1, and those of another pass are no neighbours.
    """

    entry: ShardEntry | DerivedShard
    num_sequences: int
    num_tokens: int
    load_rows: Callable[[], NDArray[np.int64]] | None = None
    number: int = 1


def read_sequences(storage: Storage, entry: ShardEntry | DerivedShard, columns: Sequence[str]) -> pa.Table:
    """Columns of all sequences of a corpus' or derived shard. Raises `CorpusError` or `DerivedError` where it is damaged."""
    if isinstance(entry, DerivedShard):
        return read_derived_shard(storage, entry, columns)
    return read_shard(storage, entry, columns=columns)
