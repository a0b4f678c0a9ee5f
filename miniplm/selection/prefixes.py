"""The longest prefix of a ranking whose tokens fit into a budget, without sorting anything whole.

The key at which the budget runs over is found from sums of tokens (`order_statistics`). Rows that share this key follow in the
order of their ids: where there are several, the rows are gone through once more, and those that still fit are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from miniplm.selection.candidates import Floats, Integers
from miniplm.selection.order_statistics import GroupedRuns


@dataclass(frozen=True)
class RankedRows:
    """What is ranked, sequences or documents: names of domains, rows and tokens of each (num_domains,), and keys by domain with tokens as weights.

    `read_blocks` gives the domain, tokens and key of every row, (num_rows_of_block,) each, in the order of ids; a key is NaN where
    the row is not ranked, and it is in no count here.
    """

    domains: list[str]
    num_rows: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    keys: GroupedRuns
    read_blocks: Callable[[], Iterator[tuple[Integers, Integers, Floats]]]


@dataclass(frozen=True)
class Demand:
    """The best rows of some domains: as many as have at most `tokens` tokens, or where `in_full` as few as have at least so many."""

    domains: list[int]
    tokens: int
    in_full: bool = False


@dataclass(frozen=True)
class Prefix:
    """How many of the best rows, and their tokens."""

    num_rows: int
    num_tokens: int


def find_prefixes(ranked: RankedRows, demands: Sequence[Demand]) -> list[Prefix]:
    """The prefix of each demand, no two of which share a domain. It ends before the first row that is over the budget, though a shorter
    one further down might fit."""
    found: list[Prefix] = []
    edges = np.full(len(ranked.domains), math.nan)
    keys = ranked.keys
    for demand in demands:
        edge = keys.find_overflow(demand.domains, partial(keys.weigh_at_least, demand.domains), demand.tokens)
        if edge is None:
            found.append(Prefix(int(ranked.num_rows[demand.domains].sum()), int(ranked.num_tokens[demand.domains].sum())))
            continue
        above = measure_above(ranked, demand.domains, edge)
        with_edge = measure_above(ranked, demand.domains, math.nextafter(edge, -math.inf))
        is_open = above.num_tokens < demand.tokens
        if is_open and demand.in_full and with_edge.num_rows == above.num_rows + 1:
            above, is_open = with_edge, False
        found.append(above)
        if is_open and with_edge.num_rows > above.num_rows + 1:
            edges[demand.domains] = edge
    if not np.isnan(edges).all():
        _add_ties(ranked, demands, found, edges)
    return found


def measure_above(ranked: RankedRows, domains: list[int], key: float) -> Prefix:
    """The rows whose key is above `key`."""
    num_rows = int(ranked.num_rows[domains].sum()) - ranked.keys.count_at_most(domains, key)
    return Prefix(num_rows, ranked.keys.weigh_at_least(domains, math.nextafter(key, math.inf)))


def _add_ties(ranked: RankedRows, demands: Sequence[Demand], found: list[Prefix], edges: Floats) -> None:
    """Adds to the prefixes the rows at their edge that belong to them, in the order of ids; `edges` are keys (num_domains,), NaN where all is known."""
    numbers = np.full(len(ranked.domains), -1)
    for number, demand in enumerate(demands):
        numbers[demand.domains] = number
    for domains, num_tokens, keys in ranked.read_blocks():
        rows = np.flatnonzero(keys == edges[domains])
        for number in np.unique(numbers[domains[rows]]).tolist():
            demand = demands[number]
            tied = num_tokens[rows[numbers[domains[rows]] == number]]
            reached = found[number].num_tokens + np.cumsum(tied, dtype=np.int64)
            num_added = (
                int(np.searchsorted(reached, demand.tokens, "left")) + 1
                if demand.in_full
                else int(np.searchsorted(reached, demand.tokens, "right"))
            )
            if num_added > len(tied) or (num_added == len(tied) and not demand.in_full):
                num_added = len(tied)
            else:  # its end is here
                edges[demand.domains] = math.nan
            if num_added:
                found[number] = Prefix(found[number].num_rows + num_added, int(reached[num_added - 1]))
        if np.isnan(edges).all():
            return
