"""What many selections by the same ranking would keep, counted in one pass: as a larger budget of the same pools keeps all that a smaller one does.

A row lies above so many of the thresholds of its pool; counting rows by that number tells of every selection at once. Rows at a threshold are
shared out in the order of ids, as `Cut` does.

Shapes: S selections, D domains, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.selection.budgets import Pool
from miniplm.selection.candidates import Floats, Integers
from miniplm.selection.prefixes import RankedRows

# Of what is kept: rows, their tokens, and rows that the current selection has too.
_MEASURES = 3


class Outcomes:
    """Selections whose pools are of the same domains. Shards are added in the order of their ids; then `counts` is asked for."""

    def __init__(self, ranked: RankedRows, selections: Sequence[Sequence[Pool]]) -> None:
        self._num_domains, self._num_selections = len(ranked.domains), len(selections)
        self._pools = [pool.domains for pool in selections[0]]
        self._of_domain = np.zeros(self._num_domains, dtype=np.int64)
        self._thresholds: list[Floats] = []  # of a pool, ascending, and the selections that they are of
        self._order: list[NDArray[np.int64]] = []
        self._num_ties: list[NDArray[np.int64]] = []
        for number, domains in enumerate(self._pools):
            self._of_domain[domains] = number
            cuts = [_find_cut(ranked, selection[number]) for selection in selections]
            thresholds = np.array([threshold for threshold, _ in cuts])
            order = np.argsort(thresholds, kind="stable")
            self._order.append(order)
            self._thresholds.append(thresholds[order])
            self._num_ties.append(np.array([ties for _, ties in cuts], dtype=np.int64)[order])
        # By pool: of each domain, rows by the number of thresholds that they are above of; and those at a threshold that are kept.
        shape = (_MEASURES, self._num_selections + 1, self._num_domains)
        self._above: NDArray[np.int64] = np.zeros((len(self._pools), *shape), dtype=np.int64)
        self._tied: NDArray[np.int64] = np.zeros((_MEASURES, self._num_selections, self._num_domains), dtype=np.int64)

    def add(self, domains: Integers, num_tokens: Integers, keys: Floats, is_current: NDArray[np.bool_]) -> None:
        """Rows of a shard, (N,) each; the key of a row that is not ranked is NaN."""
        ranked = np.flatnonzero(~np.isnan(keys))
        if len(self._pools) == 1:
            self._add_to_pool(0, ranked, domains, num_tokens, keys, is_current)
            return
        of_row = self._of_domain[domains[ranked]]
        order = np.argsort(of_row.astype(np.min_scalar_type(len(self._pools))), kind="stable")
        bounds = np.searchsorted(of_row[order], np.arange(len(self._pools) + 1))
        for pool in range(len(self._pools)):
            rows = ranked[order[bounds[pool] : bounds[pool + 1]]]
            if len(rows):
                self._add_to_pool(pool, rows, domains, num_tokens, keys, is_current)

    def _add_to_pool(
        self,
        pool: int,
        rows: Integers,
        domains: Integers,
        num_tokens: Integers,
        keys: Floats,
        is_current: NDArray[np.bool_],
    ) -> None:
        """Rows (num_rows,) of a pool, of a shard's domains, tokens, keys and membership in the current selection (N,)."""
        thresholds, own_keys, own_domains = self._thresholds[pool], keys[rows], domains[rows].astype(np.int64)
        weights = (None, num_tokens[rows], is_current[rows])
        place = np.searchsorted(thresholds, own_keys, "left")
        cells, size = place * self._num_domains + own_domains, (self._num_selections + 1) * self._num_domains
        for measure, weight in enumerate(weights):
            self._above[pool, measure] += _count(cells, weight, size).reshape(-1, self._num_domains)
        tied = np.flatnonzero(own_keys == thresholds[np.minimum(place, self._num_selections - 1)])
        for at, (threshold, left) in enumerate(zip(thresholds, self._num_ties[pool], strict=True)):
            if not left or not len(tied):
                continue
            kept = tied[own_keys[tied] == threshold][:left]
            self._num_ties[pool][at] -= len(kept)
            for measure, weight in enumerate(weights):
                counted = _count(own_domains[kept], None if weight is None else weight[kept], self._num_domains)
                self._tied[measure, self._order[pool][at]] += counted

    def counts(self) -> NDArray[np.int64]:
        """Rows, tokens and rows of the current selection that each selection keeps, by domain: (3, S, D)."""
        total = self._tied.copy()
        for pool, order in enumerate(self._order):
            # Above more than `at` of the thresholds is above the one at that place.
            above = np.cumsum(self._above[pool][:, ::-1], axis=1)[:, ::-1][:, 1:]
            total[:, order] += above
        return total


def _find_cut(ranked: RankedRows, pool: Pool) -> tuple[float, int]:
    """The least key that is kept of a pool, infinite where none is, and how many of the rows that have it."""
    if not pool.num_kept:
        return np.inf, 0
    (threshold,) = ranked.keys.find(pool.domains, [pool.num_candidates - pool.num_kept])
    return threshold, pool.num_kept - (pool.num_candidates - ranked.keys.count_at_most(pool.domains, threshold))


def _count(cells: Any, weights: Any, size: int) -> NDArray[np.int64]:
    """How many of cells (num_rows,) have each number below `size`, or their weights (num_rows,) together; exact below 2^53."""
    return np.bincount(cells, weights=weights, minlength=size).astype(np.int64)
