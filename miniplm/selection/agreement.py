"""How far two scores of the same sample agree: on what a rule selects by them, and on the ranks.

The rule is applied by the code that selects, to the sample in the place of all candidates: each of its sequences stands for the tokens
of its domain that it was drawn for, so that a budget and its shares mean what they mean of the corpus.

Shapes: N rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from miniplm.config.selection import SelectionConfig
from miniplm.errors import ConfigError
from miniplm.selection.budgets import Pool, count_passes, share_pools
from miniplm.selection.cut import Cut
from miniplm.selection.expressions import Expressions
from miniplm.selection.keys import make_keys
from miniplm.selection.order_statistics import GroupedRuns, ScratchFile
from miniplm.selection.prefixes import RankedRows
from miniplm.selection.sample import Sample
from miniplm.selection.steering import list_columns

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Applied:
    """What a rule makes of a sample: keys (N,), NaN where a row is left out; how often each row is used (N,), 0 where it is not kept;
    and what was ranked together. `num_passes` as in `Cut`."""

    keys: FloatArray
    uses: IntArray
    pools: Sequence[Pool]
    num_passes: int = 0


@dataclass(frozen=True)
class Agreement:
    """How many rows the exact scores keep (the larger number, where the others keep more), which share of them both keep, Spearman's
    correlation of the keys of what both rank, and what the exact scores make of the sample."""

    num_selected: int
    overlap: float
    spearman: float
    exact: Applied


def compare_scores(
    sample: Sample,
    rule: SelectionConfig,
    exact: tuple[FloatArray, FloatArray],
    chosen: tuple[FloatArray, FloatArray],
) -> Agreement:
    """What a rule keeps of a sample by exact and by chosen NLLs: teacher's and reference's, in nats a scored token, (N,) each.

    Raises `ConfigError` where it cannot be applied to the sample: an expression that cannot be computed, or shares that the sample is too
    small for.
    """
    wanted, found = (apply_rule(sample, rule, *nlls) for nlls in (exact, chosen))
    # A threshold or a condition may keep other numbers by both; the larger counts, so that what is kept too much lowers the overlap as well.
    num_selected = max(int(wanted.uses.sum()), int(found.uses.sum()))
    num_shared = int(np.minimum(wanted.uses, found.uses).sum())
    both = ~np.isnan(wanted.keys) & ~np.isnan(found.keys)
    spearman = correlate_ranks(found.keys[both], wanted.keys[both])
    return Agreement(num_selected, num_shared / num_selected if num_selected else 0.0, spearman, wanted)


def apply_rule(sample: Sample, rule: SelectionConfig, teacher_nll: FloatArray, reference_nll: FloatArray) -> Applied:
    """What a rule keeps of a sample by NLLs in nats a scored token, (N,) each. Raises as `compare_scores`."""
    counts = sample.num_scored_tokens.astype(np.float64)
    difference = reference_nll - teacher_nll
    expression, is_met = _evaluate(sample, rule, teacher_nll, reference_nll) if rule.has_expressions else (None, None)
    scores = (difference * counts if rule.score == "sum" else difference) if expression is None else expression
    keys, _ = make_keys(rule, sample.sequence_ids, scores, is_met)
    names, places = np.unique(np.array(sample.domains, dtype=object), return_inverse=True)
    ranked = ~np.isnan(keys)
    tokens = _weigh(sample, names, places) if rule.has_token_budget else np.zeros(len(keys), dtype=np.int64)
    totals = np.bincount(places[ranked], weights=tokens[ranked], minlength=len(names)).astype(np.int64)
    num_rows = np.bincount(places[ranked], minlength=len(names))
    if not num_rows.sum():
        return Applied(keys, np.zeros(len(keys), dtype=np.int64), ())
    with tempfile.TemporaryDirectory(prefix="miniplm-sample-") as folder, ScratchFile(Path(folder) / "scratch") as scratch:
        runs = GroupedRuns(scratch)
        runs.add(places[ranked], keys[ranked], tokens[ranked] if rule.has_token_budget else None)
        runs.finish()
        rows = RankedRows(names.tolist(), num_rows, totals, runs, lambda: iter([(places, tokens, keys)]))
        if rule.tokens is not None:  # by chance the sample may have fewer that meet the condition than the corpus
            rule = rule.model_copy(update={"tokens": min(rule.tokens, int(totals.sum()) * rule.repetitions)})
        try:
            pools = share_pools(rows, rule)
        except ConfigError as error:
            raise ConfigError(
                f"of the {len(keys):,} sequences that the rule is measured on: {error}. Measure on more of them"
            ) from error
        num_passes = count_passes(rows, rule)
        kept, repetitions = Cut(rows, pools, num_passes).find_uses(places, keys)
    uses = np.zeros(len(keys), dtype=np.int64)
    uses[kept] = 1 if repetitions is None else repetitions
    return Applied(keys, uses, pools, num_passes)


def _evaluate(sample: Sample, rule: SelectionConfig, teacher_nll: FloatArray, reference_nll: FloatArray) -> Any:
    """The expression and the condition of each row (N,), by NLLs (N,)."""
    counts = sample.num_scored_tokens
    columns = {
        "sequence_id": sample.sequence_ids,
        "domain": list(sample.domains),
        "num_tokens": sample.num_tokens,
        "num_scored_tokens": counts,
        "teacher_nll": teacher_nll,
        "reference_nll": reference_nll,
        "difference_score": reference_nll - teacher_nll,
        "teacher_nll_sum": teacher_nll * counts,
        "reference_nll_sum": reference_nll * counts,
        **sample.signals,
    }
    schema = list_columns(rule)
    return Expressions(rule, schema).evaluate(pa.table({name: columns[name] for name in schema.names}, schema=schema))


def _weigh(sample: Sample, names: Any, places: IntArray) -> IntArray:
    """How many tokens of all candidates each row (N,) stands for: its own, times the domain's in the corpus over those in the sample; names (num_domains,), places (N,)."""
    assert sample.num_tokens is not None
    own = np.bincount(places, weights=sample.num_tokens, minlength=len(names))
    wanted = np.array([sample.domain_tokens[name] for name in names], dtype=np.float64)
    # Sums are rounded, domain by domain, so that they come out exactly.
    order = np.argsort(places, kind="stable")
    reached = np.cumsum((sample.num_tokens * (wanted / np.maximum(own, 1))[places])[order])
    weights = np.zeros(len(places), dtype=np.int64)
    weights[order] = np.diff(np.rint(reached), prepend=0)
    return weights


def correlate_ranks(left: FloatArray, right: FloatArray) -> float:
    """Spearman's rank correlation of values (N,); equal values share the mean of their ranks. 1 where all ranks of one side are equal."""
    if not len(left):
        return 1.0
    ranks = []
    for values in (left, right):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks.append((last - (counts - 1) / 2)[inverse])
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 1.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
