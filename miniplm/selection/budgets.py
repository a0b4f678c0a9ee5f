"""How many are kept: a ratio, a token budget, a least score or shares of domains, each made a number of rows by pool.

A pool is ranked together: its best rows are kept, ties by the smaller id. So whatever the rule, what is kept of a pool is a
prefix of its ranking, and its length is all that the second pass has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

import numpy as np
from numpy.typing import NDArray

from miniplm.config.selection import SelectionConfig
from miniplm.errors import ScoreJoinError
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
class Pool:
    """Domains whose rows are ranked together, and how many of these are kept."""

    domains: list[int]
    num_candidates: int
    num_kept: int


def count_selected(num_candidates: int, ratio: float) -> int:
    """floor(ratio * num_candidates), with the ratio as it is written: 0.29 of 100 is 29, where floats give 28."""
    return int((Decimal(repr(ratio)) * num_candidates).to_integral_value(ROUND_FLOOR))


def make_pools(ranked: RankedRows, config: SelectionConfig) -> list[Pool]:
    """What is ranked together and how much of it is kept. Raises `ConfigError` where the rule asks for what is not there, or keeps nothing."""
    assert config.ratio is not None
    groups = (
        [list(range(len(ranked.domains)))] if config.within == "corpus" else [[domain] for domain in range(len(ranked.domains))]
    )
    pools = []
    for domains in groups:
        num_rows = int(ranked.num_rows[domains].sum())
        pools.append(Pool(domains, num_rows, count_selected(num_rows, config.ratio)))
    if not any(pool.num_kept for pool in pools):
        of_each = " of each domain" if config.within == "domain" else ""
        raise ScoreJoinError(
            f"ratio {config.ratio:g} of {int(ranked.num_rows.sum())} candidate sequences{of_each} keeps none; "
            "use a larger selection.ratio or corpus"
        )
    return pools
