"""Shares of a token budget by domain, with floors and caps, made a number of kept rows for each domain.

First each domain keeps its best rows up to its floor. Then the rest of the budget goes down the ranking of all other rows; a
domain leaves it before its first row that is over its cap, and it ends before the first row that is over the budget. Where
floors and caps do not bind this is the ranking of the whole corpus; where they are equal, each domain keeps its own best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

import numpy as np

from miniplm.errors import ConfigError, list_offenders
from miniplm.selection.prefixes import Demand, Prefix, RankedRows, find_prefixes, measure_above


@dataclass(frozen=True)
class _Bounds:
    """Least and most tokens of a domain, and whether they come of one share."""

    least: int
    most: int
    is_fixed: bool


def share_out(ranked: RankedRows, bounds: Mapping[str, tuple[float, float]], budget: int) -> list[tuple[list[int], int]]:
    """How many rows of each domain are kept, of a budget of tokens and least and largest shares of it by name.

    Shares are met to within one sequence: caps and fixed shares from below, floors from above where the budget has room for
    the rows that reach them. Raises `ConfigError` with the numbers where they cannot be met.
    """
    limits = _list_limits(ranked, bounds, budget)
    each = [[domain] for domain in range(len(ranked.domains))]
    caps = find_prefixes(ranked, [Demand(domains, limit.most) for domains, limit in zip(each, limits, strict=True)])
    floors = _find_floors(ranked, each, limits, caps, budget)
    return list(zip(each, _fill_up(ranked, floors, caps, budget), strict=True))


def _list_limits(ranked: RankedRows, bounds: Mapping[str, tuple[float, float]], budget: int) -> list[_Bounds]:
    """The bounds of each domain in tokens, seen to be within what there is."""
    if unknown := sorted(set(bounds) - set(ranked.domains)):
        raise ConfigError(
            f"selection.mix names {list_offenders(unknown)}, which no candidate is of; the domains are {list_offenders(sorted(ranked.domains))}"
        )
    limits, short = [], []
    for name, num_tokens in zip(ranked.domains, ranked.num_tokens.tolist(), strict=True):
        low, high = bounds.get(name, (0.0, 1.0))
        is_fixed = low == high
        least = int((Decimal(repr(low)) * budget).to_integral_value(ROUND_FLOOR if is_fixed else ROUND_CEILING))
        most = int((Decimal(repr(high)) * budget).to_integral_value(ROUND_FLOOR))
        if least > num_tokens:
            short.append(f"{name} has {num_tokens:,} tokens, {low:g} of {budget:,} are {least:,}")
        limits.append(_Bounds(least, max(least, most), is_fixed))
    if short:
        raise ConfigError(f"selection.mix asks for more than there is: {'; '.join(short[:10])}. Lower these shares, or the budget")
    # A fixed share loses a part of a token; nothing is short for that.
    reachable = sum(min(limit.most, num_tokens) for limit, num_tokens in zip(limits, ranked.num_tokens.tolist(), strict=True))
    if reachable + len(limits) < budget:
        held = [
            f"{name} {min(limit.most, num_tokens):,}"
            for name, limit, num_tokens in zip(ranked.domains, limits, ranked.num_tokens.tolist(), strict=True)
        ]
        raise ConfigError(
            f"selection.mix lets at most {reachable:,} of the budget of {budget:,} tokens be kept ({', '.join(held[:10])}{', ...' if held[10:] else ''}): "
            "raise the largest shares, name fewer domains, or lower the budget"
        )
    return limits


def _find_floors(
    ranked: RankedRows, each: list[list[int]], limits: Sequence[_Bounds], caps: Sequence[Prefix], budget: int
) -> list[Prefix]:
    """The rows that each domain keeps whatever the others have: in full, unless they would not fit together."""
    in_full = find_prefixes(
        ranked, [Demand(domains, limit.least, not limit.is_fixed) for domains, limit in zip(each, limits, strict=True)]
    )
    floors = [min(floor, cap, key=lambda prefix: prefix.num_rows) for floor, cap in zip(in_full, caps, strict=True)]
    if sum(floor.num_tokens for floor in floors) <= budget:
        return floors
    return find_prefixes(ranked, [Demand(domains, limit.least) for domains, limit in zip(each, limits, strict=True)])


def _fill_up(ranked: RankedRows, floors: Sequence[Prefix], caps: Sequence[Prefix], budget: int) -> list[int]:
    """Rows kept of each domain, between its floor and its cap, when the rest of the budget goes down one ranking."""
    keys, domains = ranked.keys, list(range(len(ranked.domains)))
    low, high = (np.array([prefix.num_tokens for prefix in prefixes], dtype=np.int64) for prefixes in (floors, caps))

    def weigh(key: float) -> int:
        held = np.array([keys.weigh_at_least([domain], key) for domain in domains], dtype=np.int64)
        return int(np.clip(held, low, high).sum())

    edge = keys.find_overflow(domains, weigh, budget)
    if edge is None:
        return [cap.num_rows for cap in caps]
    above = [measure_above(ranked, [domain], edge) for domain in domains]
    fewest, most = (np.array([prefix.num_rows for prefix in prefixes], dtype=np.int64) for prefixes in (floors, caps))
    num_kept = np.clip([prefix.num_rows for prefix in above], fewest, most)
    left = budget - int(np.clip([prefix.num_tokens for prefix in above], low, high).sum())
    # Rows at the edge come by their ids; those that a floor holds already, or that are over a cap, are passed by.
    place = np.array([prefix.num_rows for prefix in above], dtype=np.int64)
    for row_domains, num_tokens, row_keys in ranked.read_blocks():
        for row in np.flatnonzero(row_keys == edge).tolist():
            domain = row_domains[row]
            place[domain] += 1
            if not fewest[domain] < place[domain] <= most[domain]:
                continue
            left -= int(num_tokens[row])
            if left < 0:
                return [int(num) for num in num_kept]
            num_kept[domain] += 1
    raise AssertionError("the rows at the edge fit into the budget")
