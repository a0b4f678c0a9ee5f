"""What a proxy reads of sequences: one row of numbers each, in the order of its weights.

Both kinds read the reference's own NLL too, which is known of every candidate: text that is hard for the one is mostly hard for the other.

Shapes: N sequences, T tokens of one, H width of the hidden state, D columns that are scaled, F columns in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from miniplm.proxy.ngrams import count_ngrams

Floats = NDArray[np.float64]
Sequences = Sequence[NDArray[Any]]


# Sequences (T,) to their mean hidden states (N, H) under the reference.
PoolStates = Callable[[Sequences], Floats]


def read_columns(sequences: Sequences, reference_nll: Floats, pool: PoolStates | None) -> tuple[sp.csr_matrix | None, Floats]:
    """The n-grams of sequences (T,), for the linear proxy, and its columns (N, D) to be scaled: the NLL (N,) under the reference, and its states if they are given."""
    column = reference_nll[:, None]
    if pool is None:
        return count_ngrams(sequences), column
    return None, np.concatenate([pool(sequences), column], axis=1)


@dataclass(frozen=True)
class Scale:
    """Brings columns (N, D) to mean 0 and deviation 1 over the sequences that were fitted, and rows of states to a length of about 1."""

    means: Floats  # (D,)
    deviations: Floats  # (D,)

    @classmethod
    def of(cls, columns: Floats) -> Scale:
        """The scale of columns (N, D)."""
        deviations = columns.std(axis=0)
        return cls(columns.mean(axis=0), np.where(deviations > 0, deviations, 1.0))

    def apply(self, columns: Floats) -> Floats:
        """Columns (N, D), scaled."""
        scaled: Floats = (columns - self.means) / self.deviations
        # The reference's NLL comes last, and counts as much as all that is beside it.
        scaled[:, :-1] /= np.sqrt(max(1, scaled.shape[1] - 1))
        return scaled


def join_columns(ngrams: sp.csr_matrix | None, scaled: Floats) -> sp.csr_matrix:
    """All columns (N, F) of rows: n-grams, where there are any, before what was scaled, (N, D)."""
    dense = sp.csr_matrix(scaled)
    return dense if ngrams is None else sp.hstack([ngrams, dense], format="csr")
