"""Hashed n-grams of token ids: what the linear proxy reads of a sequence.

Shapes: N sequences, T tokens of one, F columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from miniplm.selection.minhash import hash_ngrams

# 2^20 float64 weights are 8 MiB. 50 M tokens have some 10 M different pairs, most of which occur once and say nothing.
_NUM_BITS = 20
NUM_COLUMNS = 1 << _NUM_BITS
_SHIFT = np.uint64(64 - _NUM_BITS)
_SIZES = (1, 2)


def count_ngrams(sequences: Sequence[NDArray[Any]]) -> sp.csr_matrix:
    """A row (F,) a sequence (T,): log(1 + count) of its tokens and pairs of tokens, each at its hash, scaled to length 1. Shape (N, F), float64."""
    indices, values, ends = [np.zeros(0, dtype=np.int32)], [np.zeros(0)], [0]
    for sequence in sequences:
        hashes = [hash_ngrams(sequence, size) >> _SHIFT for size in _SIZES if len(sequence) >= size]
        columns, counts = np.unique(np.concatenate(hashes) if hashes else indices[0], return_counts=True)
        weights = np.log1p(counts)
        indices.append(columns.astype(np.int32))
        values.append(weights / max(float(np.sqrt(np.square(weights).sum())), 1e-12))
        ends.append(ends[-1] + len(columns))
    return sp.csr_matrix((np.concatenate(values), np.concatenate(indices), ends), shape=(len(sequences), NUM_COLUMNS))
