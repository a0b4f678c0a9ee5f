"""How far two scores agree: on what is selected by them, and on the ranks.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miniplm.selection.ranking import count_selected

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IndexArray = np.ndarray[Any, np.dtype[np.int64]]


def group_rows(domains: Sequence[str] | None, num_rows: int) -> list[IndexArray]:
    """The rows (num_group,) that are ranked together: those of each domain, or all where none are given."""
    if domains is None:
        return [np.arange(num_rows)]
    of_rows = np.array(domains, dtype=object)
    return [np.flatnonzero(of_rows == domain) for domain in sorted(set(domains))]


def compare_selections(chosen: FloatArray, exact: FloatArray, groups: list[IndexArray], ratio: float) -> tuple[int, float]:
    """How many rows the exact scores (N,) select, `ratio` of each group, and which share of them the chosen ones (N,) select too."""
    num_selected = sum(count_selected(len(rows), ratio) for rows in groups)
    kept = _select(chosen, groups, ratio) & _select(exact, groups, ratio)
    return num_selected, len(kept) / num_selected if num_selected else 0.0


def _select(difference_scores: FloatArray, groups: list[IndexArray], ratio: float) -> set[int]:
    """The floor(ratio * N) rows of each group with the largest scores (N,), ties by the smaller row, as `select_sequences` does."""
    selected: set[int] = set()
    for rows in groups:
        order = np.lexsort((rows, -difference_scores[rows]))[: count_selected(len(rows), ratio)]
        selected.update(rows[order].tolist())
    return selected


def correlate_ranks(left: FloatArray, right: FloatArray) -> float:
    """Spearman's rank correlation of values (N,); equal values share the mean of their ranks. 1 where all ranks of one side are equal."""
    ranks = []
    for values in (left, right):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks.append((last - (counts - 1) / 2)[inverse])
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 1.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
