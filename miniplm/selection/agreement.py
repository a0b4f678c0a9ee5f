"""How far two scores agree: on what is selected by them, and on the ranks.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miniplm.config.selection import SelectionConfig
from miniplm.selection.budgets import count_selected
from miniplm.selection.noise import draw_gumbel

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IndexArray = np.ndarray[Any, np.dtype[np.int64]]


def group_rows(domains: Sequence[str] | None, num_rows: int) -> list[IndexArray]:
    """The rows (num_group,) that are ranked together: those of each domain, or all where none are given."""
    if domains is None:
        return [np.arange(num_rows)]
    of_rows = np.array(domains, dtype=object)
    return [np.flatnonzero(of_rows == domain) for domain in sorted(set(domains))]


def add_noise(rule: SelectionConfig, sequence_ids: Sequence[int], scores: FloatArray) -> FloatArray:
    """Scores (N,) with the noise that the rule draws for their sequences (N,); as they are where it draws none."""
    if not rule.temperature:
        return scores
    return scores + rule.temperature * draw_gumbel(np.array(sequence_ids, dtype=np.int64), rule.seed)


def compare_selections(
    chosen: FloatArray, exact: FloatArray, groups: list[IndexArray], rule: SelectionConfig, share: float
) -> tuple[int, float]:
    """How many rows are selected, and which share of them by the exact scores (N,) and the chosen ones (N,) both.

    A least score of the rule is applied as it is; any other rule keeps `share` of each group.
    """
    if rule.threshold is not None and not rule.is_expression:
        wanted, found = (set(np.flatnonzero(scores >= rule.threshold).tolist()) for scores in (exact, chosen))
    else:
        wanted, found = _select(exact, groups, share), _select(chosen, groups, share)
    # A threshold may keep other numbers by both; the larger counts, so that what is kept too much lowers the overlap as well.
    num_selected, kept = max(len(wanted), len(found)), wanted & found
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
