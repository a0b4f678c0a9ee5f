"""By what the rows of a shard are ranked, one float64 each, and which of them are not ranked at all, with the reason.

The key is the score, the difference score or the value of an expression, plus noise where candidates are drawn at a
temperature. A row that is left out has the key NaN. It is made where a shard is read, from nothing but that shard's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from miniplm.config.selection import SelectionConfig
from miniplm.records.manifests import ShardEntry
from miniplm.selection.candidates import Floats, ShardScores, ShardSequences
from miniplm.selection.noise import draw_gumbel


@dataclass(frozen=True)
class ShardRows:
    """The candidates of a shard in the order of their ids, as rules see them."""

    shard: ShardEntry
    sequences: ShardSequences
    scores: ShardScores

    @property
    def sequence_ids(self) -> NDArray[np.int64]:  # (num_sequences,)
        return np.arange(self.shard.first_sequence_id, self.shard.first_sequence_id + self.shard.num_sequences)


@dataclass(frozen=True)
class ShardKeys:
    """Of the rows of a shard, (num_sequences,) each: the difference score, the value of the expression where one is the score, and
    the ranking key, NaN where a row is left out; `left_out` counts those by reason."""

    difference: Floats
    ranking_key: Floats
    expression: Floats | None = None
    left_out: dict[str, int] = field(default_factory=dict)


# Of the rows of a shard: the value of the score expression and whether `where` is met, (num_sequences,) each; None where there is none.
Evaluate = Callable[[ShardRows], tuple[Floats | None, NDArray[np.bool_] | None]]


class Exclusion(Protocol):
    """Rows that are left out before anything is ranked, for a reason that is told: `find` gives True for these, (num_sequences,)."""

    @property
    def reason(self) -> str: ...

    def find(self, rows: ShardRows, /) -> NDArray[np.bool_]:  # (num_sequences,)
        ...


class RankingKeys:
    """Makes the keys of any shard, in any order and thread. A row that several exclusions name is counted under the first; `where` comes first."""

    def __init__(self, config: SelectionConfig, evaluate: Evaluate | None = None, exclusions: Sequence[Exclusion] = ()) -> None:
        self.config = config
        self._evaluate = evaluate
        self._exclusions = exclusions

    @property
    def are_differences(self) -> bool:
        """Whether the keys are the difference scores of all rows, which then need no place of their own."""
        return self.config.ranks_by_difference and self.config.where is None and not self._exclusions

    def make(self, rows: ShardRows) -> ShardKeys:
        difference = rows.scores.difference_score(self.config.difference)
        if self.are_differences:
            return ShardKeys(difference, difference)
        expression, is_met = (None, None) if self._evaluate is None else self._evaluate(rows)
        dropped = [(exclusion.reason, exclusion.find(rows)) for exclusion in self._exclusions]
        key, left_out = make_keys(self.config, rows.sequence_ids, difference if expression is None else expression, is_met, dropped)
        return ShardKeys(difference, key, expression, left_out)


def make_keys(
    config: SelectionConfig,
    ids: NDArray[np.int64],
    scores: Floats,
    is_met: NDArray[np.bool_] | None = None,
    dropped: Sequence[tuple[str, NDArray[np.bool_]]] = (),
) -> tuple[Floats, dict[str, int]]:
    """The ranking keys of rows with these ids and scores, NaN where one is left out, and how many are by reason.

    `is_met` says of which rows `where` is true, `dropped` which are left out for another reason; (num_rows,) each.
    """
    keys = scores.copy()
    if config.temperature:
        # In the unit of the score: the order is that of score / temperature + noise, and no quotient overflows.
        keys += config.temperature * draw_gumbel(ids, config.seed)
    left_out: dict[str, int] = {}
    conditions = [] if is_met is None else [("where", ~is_met)]
    for reason, rows in (*conditions, *dropped):
        new = rows & ~np.isnan(keys)
        left_out[reason] = int(np.count_nonzero(new))
        keys[new] = np.nan
    return keys, left_out
