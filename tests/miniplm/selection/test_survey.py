"""What a survey tells of domains, however many there are."""

from __future__ import annotations

from typing import Any, cast

import duckdb
import numpy as np

from miniplm.selection.ranking import QUANTILES
from miniplm.selection.survey import Survey


class Sorted:
    """Stands in for the sorted runs of each domain."""

    def __init__(self, values: list[list[float]]) -> None:
        self._values = values

    def find(self, groups: list[int], ranks: list[int]) -> list[float]:
        return [self._values[groups[0]][rank] for rank in ranks]


def test_quantiles_of_domains_of_one_size_are_those_of_each_alone() -> None:
    """Bit for bit: they are asked for together."""
    rng = np.random.default_rng(1)
    sizes = np.array([1, *rng.integers(1, 12, 150)])
    values = [sorted(rng.normal(size=size).tolist()) for size in sizes]
    runs = cast(Any, Sorted(values))
    survey = Survey(cast(Any, None), runs, runs, {}, [str(number) for number in range(len(sizes))], sizes)
    found = survey.quantiles(QUANTILES)
    with duckdb.connect() as connection:
        for domain in range(0, len(sizes), 10):
            query = f"SELECT quantile_cont(value, {list(QUANTILES)}) FROM (SELECT unnest(?::DOUBLE[]) AS value)"
            ((alone,),) = connection.execute(query, [values[domain]]).fetchall()
            assert tuple(alone) == found[domain]
