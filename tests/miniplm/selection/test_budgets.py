"""Budgets and mixes against a plain walk down a sorted list, whatever the order and the runs in which rows come."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniplm.config.selection import SelectionConfig
from miniplm.errors import ConfigError
from miniplm.selection.budgets import make_pools
from miniplm.selection.cut import Cut
from miniplm.selection.order_statistics import GroupedRuns, ScratchFile
from miniplm.selection.prefixes import RankedRows

NAMES = ["a", "b", "c"]
Rows = list[tuple[int, int, float]]  # domain, tokens and key of a row, whose id is its place


def keep(rows: Rows, config: SelectionConfig, folder: Path, run_values: int = 9, block: int = 5) -> list[int]:
    """What the rule keeps, by the two passes."""
    domains, num_tokens = (np.array([row[column] for row in rows], dtype=np.int64) for column in (0, 1))
    keys = np.array([row[2] for row in rows], dtype=np.float64)
    starts = range(0, len(rows), block)
    with ScratchFile(folder / f"scratch-{len(list(folder.iterdir()))}") as scratch:
        runs = GroupedRuns(scratch, run_values)
        for start in reversed(starts):  # shards come in any order
            part = slice(start, start + block)
            ranked = ~np.isnan(keys[part])
            runs.add(domains[part][ranked], keys[part][ranked], num_tokens[part][ranked])
        runs.finish()
        is_ranked = ~np.isnan(keys)
        ranked_rows = RankedRows(
            NAMES,
            np.bincount(domains[is_ranked], minlength=3),
            np.bincount(domains[is_ranked], num_tokens[is_ranked], minlength=3).astype(np.int64),
            runs,
            lambda: ((domains[s : s + block], num_tokens[s : s + block], keys[s : s + block]) for s in starts),
        )
        cut = Cut(ranked_rows, make_pools(ranked_rows, config))
        found = [cut.find_kept(domains[s : s + block], keys[s : s + block]) + s for s in starts]
    return [int(row) for part in found for row in part]


def walk(rows: Rows, budget: int, bounds: dict[str, tuple[float, float]]) -> list[int] | None:
    """The oracle: a sorted list, floors first, then down the rest until a row is over the budget; None where it cannot be met."""
    order = sorted((row for row in range(len(rows)) if rows[row][2] == rows[row][2]), key=lambda row: (-rows[row][2], row))
    totals = [sum(rows[row][1] for row in order if rows[row][0] == domain) for domain in range(3)]
    shares = [tuple(Decimal(repr(share)) for share in bounds.get(name, (0.0, 1.0))) for name in NAMES]
    if any(math.ceil(low * budget) > total for (low, _), total in zip(shares, totals, strict=True)):
        return None
    if sum(min(int(high * budget), total) for (_, high), total in zip(shares, totals, strict=True)) + 3 < budget:
        return None

    def take(domain: int, tokens: float | Decimal, in_full: bool) -> list[int]:
        taken, held = [], 0
        for row in (row for row in order if rows[row][0] == domain):
            if held >= tokens if in_full else held + rows[row][1] > tokens:
                break
            taken.append(row)
            held += rows[row][1]
        return taken

    # A floor is whole tokens, and a cap is never under it; without any bounds no domain has a cap of its own.
    caps = [
        take(domain, max(high * budget, math.ceil(low * budget)) if bounds else 10**9, False)
        for domain, (low, high) in enumerate(shares)
    ]
    floors = [
        take(domain, math.ceil(low * budget) if low != high else low * budget, low != high)[: len(caps[domain])]
        for domain, (low, high) in enumerate(shares)
    ]
    if sum(rows[row][1] for floor in floors for row in floor) > budget:
        floors = [
            take(domain, math.ceil(low * budget) if low != high else low * budget, False)
            for domain, (low, high) in enumerate(shares)
        ]
    kept = [row for floor in floors for row in floor]
    left = budget - sum(rows[row][1] for row in kept)
    for row in order:
        if row in kept or row not in caps[rows[row][0]]:
            continue
        left -= rows[row][1]
        if left < 0:
            break
        kept.append(row)
    return sorted(kept)


def make_rows(seed: int, num: int = 40, num_keys: int = 6) -> Rows:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-2, num_keys, num) / 4
    keys[rng.random(num) < 0.1] = np.nan
    return [(int(d), int(t), float(k)) for d, t, k in zip(rng.integers(0, 3, num), rng.integers(1, 9, num), keys, strict=True)]


def test_a_worked_case_of_a_budget(tmp_path: Path) -> None:
    """The best first: 3 + 4 fit into 9 tokens, 3 more do not, though 2 more further down would."""
    rows = [(0, 2, 0.5), (1, 3, 3.0), (0, 4, 2.0), (1, 3, 1.0)]
    assert keep(rows, SelectionConfig(tokens=9), tmp_path) == [1, 2]
    assert keep(rows, SelectionConfig(tokens=10), tmp_path) == [1, 2, 3]
    assert keep(rows, SelectionConfig(tokens=12), tmp_path) == [0, 1, 2, 3]
    assert keep(rows, SelectionConfig(threshold=1.0), tmp_path) == [1, 2, 3]


def test_a_worked_case_of_a_mix(tmp_path: Path) -> None:
    """Of 10 tokens a may have at most 4 and c needs 2: the best of a, the best of c, and b has the rest though a's are better."""
    rows = [(0, 2, 9.0), (0, 2, 8.0), (0, 2, 7.0), (1, 2, 3.0), (1, 2, 2.0), (1, 2, 1.0), (2, 2, -5.0), (2, 2, -6.0)]
    config = SelectionConfig.model_validate({"tokens": 10, "mix": {"a": {"at_most": 0.4}, "c": {"at_least": 0.2}}})
    assert keep(rows, config, tmp_path) == [0, 1, 3, 4, 6]
    fixed = SelectionConfig.model_validate({"tokens": 10, "mix": {"a": 0.2, "b": 0.4, "c": 0.4}})
    assert keep(rows, fixed, tmp_path) == [0, 3, 4, 6, 7]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 40]), st.integers(1, 200), st.sampled_from([3, 40]), st.sampled_from([1, 7, 40]))
def test_budgets_keep_what_a_sorted_list_keeps(tmp_path_factory, seed, num_keys, budget, run_values, block) -> None:
    rows = make_rows(seed, num_keys=num_keys)
    total = sum(tokens for _, tokens, key in rows if key == key)
    wanted = walk(rows, budget, {}) if budget <= total else None
    folder = tmp_path_factory.mktemp("kept")
    if not wanted:
        with pytest.raises(ConfigError, match=r"candidates that are ranked have|keep none of"):
            keep(rows, SelectionConfig(tokens=budget), folder, run_values, block)
        return
    assert keep(rows, SelectionConfig(tokens=budget), folder, run_values, block) == wanted
    by_domain = []
    for domain in range(3):
        tokens = sum(row[1] for row in rows if row[0] == domain and row[2] == row[2])
        only = [row if row[0] == domain else (row[0], row[1], float("nan")) for row in rows]
        by_domain += walk(only, budget * tokens // total, {}) or []
    if by_domain:
        assert keep(rows, SelectionConfig(tokens=budget, within="domain"), folder, run_values, block) == sorted(by_domain)


def find_floor(share: float | dict[str, float]) -> float:
    return share["at_least"] if isinstance(share, dict) else share


share = st.one_of(
    st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    st.tuples(st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.3, 0.4, 1.0])).map(
        lambda pair: {"at_least": pair[0], "at_most": pair[1]}
    ),
)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([2, 40]),
    st.integers(1, 150),
    st.dictionaries(st.sampled_from(NAMES), share, min_size=1).filter(lambda mix: sum(map(find_floor, mix.values())) <= 1),
    st.sampled_from([1, 7, 40]),
)
def test_mixes_keep_what_a_walk_with_floors_and_caps_keeps(tmp_path_factory, seed, num_keys, budget, mix, block) -> None:
    rows = make_rows(seed, num_keys=num_keys)
    total = sum(tokens for _, tokens, key in rows if key == key)
    config = SelectionConfig.model_validate({"tokens": budget, "mix": mix})
    wanted = walk(rows, budget, config.bounds) if budget <= total else None
    folder = tmp_path_factory.mktemp("kept")
    if not wanted:
        with pytest.raises(ConfigError, match=r"candidates that are ranked have|keep none of|asks for more|lets at most"):
            keep(rows, config, folder, block=block)
        return
    kept = keep(rows, config, folder, block=block)
    assert kept == wanted
    tokens = [sum(rows[row][1] for row in kept if rows[row][0] == domain) for domain in range(3)]
    assert sum(tokens) <= budget
    for name, (low, high) in config.bounds.items():
        assert low * budget - 8 < tokens[NAMES.index(name)] <= max(high * budget, math.ceil(low * budget)) + 1e-9
    assert kept == keep(rows, config, folder, run_values=40, block=3)


def test_the_two_ends_of_a_mix_are_within_corpus_and_within_domain(tmp_path: Path) -> None:
    rows = make_rows(3, num=60, num_keys=40)
    open_mix = {"tokens": 100, "mix": {"a": {"at_least": 0.0, "at_most": 1.0}}}
    assert keep(rows, SelectionConfig.model_validate(open_mix), tmp_path) == keep(rows, SelectionConfig(tokens=100), tmp_path)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"python": 0.2}, r"selection\.mix names python, which no candidate is of; the domains are a, b, c"),
        ({"c": 0.9}, r"c has 4 tokens, 0\.9 of 10 are 9\. Lower these shares, or the budget"),
        ({"a": {"at_most": 0.1}, "b": {"at_most": 0.1}}, r"lets at most 6 of the budget of 10 tokens be kept \(a 1, b 1, c 4\)"),
    ],
)
def test_a_mix_that_cannot_be_met_is_refused_with_the_numbers(tmp_path: Path, mix: dict, message: str) -> None:
    rows = [(0, 4, 1.0), (0, 4, 2.0), (1, 4, 3.0), (2, 4, 4.0)]
    with pytest.raises(ConfigError, match=message):
        keep(rows, SelectionConfig.model_validate({"tokens": 10, "mix": mix}), tmp_path)


def test_budgets_that_keep_nothing_or_more_than_there_is_are_refused(tmp_path: Path) -> None:
    rows = [(0, 4, 1.0), (1, 4, 2.5)]
    for config, message in [
        ({"tokens": 9}, r"selection\.tokens is 9, but the 2 candidates that are ranked have 8 tokens together"),
        ({"tokens": 3}, r"3 tokens keep none of 2 candidates with 8 tokens: the best is longer"),
        ({"threshold": 3}, r"selection\.threshold 3 keeps none of 2 candidates, whose highest score is 2\.5"),
    ]:
        with pytest.raises(ConfigError, match=message):
            keep(rows, SelectionConfig.model_validate(config), tmp_path)
    with pytest.raises(ConfigError, match=r"no candidate is left to rank"):
        keep([(0, 4, float("nan"))], SelectionConfig(tokens=3), tmp_path)
