"""How many are kept: a ratio, a token budget, a least score or shares of domains, each made a number of rows by pool.

A pool is ranked together: its best rows are kept, ties by the smaller id. So whatever the rule, what is kept of a pool is a
prefix of its ranking, and its length is all that the second pass has to know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from miniplm.config.selection import SelectionConfig
from miniplm.errors import ConfigError, ScoreJoinError
from miniplm.selection.mix import share_out
from miniplm.selection.prefixes import Demand, RankedRows, find_prefixes


@dataclass(frozen=True)
class Pool:
    """Domains whose rows are ranked together, and how many of these are kept."""

    domains: list[int]
    num_candidates: int
    num_kept: int


def count_selected(num_candidates: int, ratio: float) -> int:
    """floor(ratio * num_candidates), with the ratio as it is written: 0.29 of 100 is 29, where floats give 28."""
    return int((Decimal(repr(ratio)) * num_candidates).to_integral_value(ROUND_FLOOR))


def make_pools(ranked: RankedRows, config: SelectionConfig) -> list[Pool]:
    """What is ranked together and how much of it is kept.

    Raises `ConfigError` where the rule asks for what is not there or keeps nothing, and `ScoreJoinError` where the ratio does.
    """
    num_rows = int(ranked.num_rows.sum())
    if num_rows == 0 and (config.where is not None or config.ratio is None):
        raise ConfigError("no candidate is left to rank; loosen selection.where, or whatever else leaves candidates out")
    pools = share_pools(ranked, config)
    if not any(pool.num_kept for pool in pools) and not count_passes(ranked, config):
        of_each = " of each domain" if config.within == "domain" else ""
        if config.threshold is not None:
            (highest,) = ranked.keys.find(list(range(len(ranked.domains))), [num_rows - 1])
            raise ConfigError(
                f"selection.threshold {config.threshold:g} keeps none of {num_rows:,} candidates, whose highest score is {highest:g}; use a lower one"
            )
        if not config.has_token_budget:
            raise ScoreJoinError(
                f"ratio {config.ratio:g} of {num_rows} candidate {config.unit}s{of_each} keeps none; use a larger selection.ratio or corpus"
            )
        raise ConfigError(
            f"{config.title} keep none of {num_rows:,} candidates with {int(ranked.num_tokens.sum()):,} tokens{of_each}: the best is longer; "
            "use a larger budget"
        )
    return pools


def share_pools(ranked: RankedRows, config: SelectionConfig) -> list[Pool]:
    """As `make_pools`, also where nothing is kept. Raises `ConfigError` where the rule asks for what is not there."""
    if config.threshold is not None:
        return [_cut_at(ranked, config.threshold)]
    if config.mix:
        kept = share_out(ranked, config.bounds, _count_budget(ranked, config))
    elif config.tokens is not None:
        kept = _fill(ranked, config)
    else:
        assert config.ratio is not None
        kept = [(domains, count_selected(int(ranked.num_rows[domains].sum()), config.ratio)) for domains in _group(ranked, config)]
    return [Pool(domains, int(ranked.num_rows[domains].sum()), num_kept) for domains, num_kept in kept]


def count_passes(ranked: RankedRows, config: SelectionConfig) -> int:
    """How many whole passes over all that is ranked a budget takes before the best of it are used once more; 0 where it is not more than that.

    What is kept is all then, and the pools' `num_kept` are used once more.
    """
    total = int(ranked.num_tokens.sum())
    if config.repetitions == 1 or config.tokens is None or config.tokens <= total or not total:
        return 0
    return config.tokens // total


def _group(ranked: RankedRows, config: SelectionConfig) -> list[list[int]]:
    """The domains that are ranked together: all, or each by itself."""
    everything = list(range(len(ranked.domains)))
    return [everything] if config.within == "corpus" else [[domain] for domain in everything]


def _count_budget(ranked: RankedRows, config: SelectionConfig) -> int:
    """How many tokens may be kept: as many as asked for, or a share of those that are ranked."""
    total = int(ranked.num_tokens.sum())
    if config.tokens is None:
        assert config.ratio is not None
        return count_selected(total, config.ratio)
    if config.tokens > total * config.repetitions:
        if config.repetitions > 1:
            raise ConfigError(
                f"selection.tokens is {config.tokens:,}, but the {int(ranked.num_rows.sum()):,} candidates that are ranked have {total:,} tokens "
                f"together, {config.repetitions} times {total * config.repetitions:,}; lower the budget, or raise selection.repetitions"
            )
        raise ConfigError(
            f"selection.tokens is {config.tokens:,}, but the {int(ranked.num_rows.sum()):,} candidates that are ranked have {total:,} tokens "
            "together; lower the budget, use a larger corpus, or let candidates be used more than once: selection.repetitions"
        )
    # What whole passes over all do not fill.
    return config.tokens - total * count_passes(ranked, config)


def _fill(ranked: RankedRows, config: SelectionConfig) -> list[tuple[list[int], int]]:
    """The best that fit into the budget, of all or of each domain by its share of the candidates' tokens."""
    budget, total = _count_budget(ranked, config), int(ranked.num_tokens.sum())
    groups = _group(ranked, config)
    budgets = [budget * int(ranked.num_tokens[domains].sum()) // total for domains in groups]
    prefixes = find_prefixes(ranked, [Demand(domains, tokens) for domains, tokens in zip(groups, budgets, strict=True)])
    return [(domains, prefix.num_rows) for domains, prefix in zip(groups, prefixes, strict=True)]


def _cut_at(ranked: RankedRows, threshold: float) -> Pool:
    domains, num_rows = list(range(len(ranked.domains))), int(ranked.num_rows.sum())
    num_kept = num_rows - ranked.keys.count_at_most(domains, math.nextafter(threshold, -math.inf))
    return Pool(domains, num_rows, num_kept)
