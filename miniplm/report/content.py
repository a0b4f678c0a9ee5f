"""Gathers what a report shows from the storage root; nothing here knows HTML.

Memory is bounded by bins, domains and the 40 sequences shown, never by the number of sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miniplm.corpus.overlap import find_kept_overlap
from miniplm.evaluation.comparison import StudentComparison, compare_students
from miniplm.evaluation.curves import StudentCurve, gather_curves
from miniplm.records.manifests import CheckpointMetrics, CorpusManifest
from miniplm.records.metrics import read_student_metrics
from miniplm.records.overlap import OverlapSummary
from miniplm.records.run import RunRecord
from miniplm.records.selections import SelectionManifest
from miniplm.records.texts import MeasuredText
from miniplm.records.truth import TruthSummary
from miniplm.records.what_if import WhatIf
from miniplm.run.inspection import (
    InspectedDomain,
    InspectedSequence,
    describe_domains,
    describe_sequences,
    load_run_corpus,
    open_scores,
    rank_sequences,
)
from miniplm.run.outside_texts import describe_overlap
from miniplm.run.overlap import find_overlap_summary
from miniplm.run.proxy_summary import ProxySummary, summarise_proxy
from miniplm.run.truth import find_truth
from miniplm.run.what_if import find_what_if
from miniplm.selection.diversity_sample import SelectionDiversity, provide_diversity
from miniplm.selection.documents import document_scores
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage

NUM_SHOWN = 20
_MAX_CURVE_POINTS = 800


@dataclass(frozen=True)
class ScoreHistogram:
    """Difference scores counted by domain in bins shared by all: bin i is [edges[i], edges[i + 1]).

    The selection threshold is an edge, so what was kept lies right of it. Scores outside the edges are counted in
    `num_below` and `num_above`; only a few far outliers are.
    """

    edges: np.ndarray[Any, Any]  # (num_bins + 1,)
    counts: dict[str, np.ndarray[Any, Any]]  # (num_bins,) each
    num_below: int
    num_above: int


@dataclass(frozen=True)
class LossCurve:
    """Training loss of a student: `loss` and `smooth_loss`, nats a token, at `step`; long ones in means of equal stretches."""

    step: np.ndarray[Any, Any]
    loss: np.ndarray[Any, Any]
    smooth_loss: np.ndarray[Any, Any]


@dataclass(frozen=True)
class ReportContent:
    """All that the page shows. What the run has not reached is None or empty."""

    record: RunRecord
    corpus: CorpusManifest | None
    domains: list[InspectedDomain]
    selection: SelectionManifest | None
    histogram: ScoreHistogram | None
    most_wanted: list[InspectedSequence]
    least_wanted: list[InspectedSequence]
    curves: dict[str, LossCurve]
    scaling: dict[str, StudentCurve]
    comparisons: dict[str, StudentComparison]
    truth: TruthSummary | None = None
    split_comparisons: dict[str, StudentComparison] = field(default_factory=dict)
    overlap: str | None = None
    diversity: SelectionDiversity | None = None
    proxy: ProxySummary | None = None
    sharing: OverlapSummary | None = None
    what_if: WhatIf | None = None


def gather_content(storage: Storage, record: RunRecord) -> ReportContent:
    """Reads what a run has at the storage root. Raises as the inspection does where it is damaged."""
    corpus = load_run_corpus(storage, record) if record.corpus_id is not None else None
    selection = load_selection(storage, record.selection_id) if record.selection_id is not None else None
    histogram = diversity = None
    most_wanted: list[InspectedSequence] = []
    least_wanted: list[InspectedSequence] = []
    if corpus is not None and selection is not None:
        with open_scores(storage, record, corpus) as connection:
            histogram = count_scores(connection, selection, _provide_scores(connection, storage, corpus, selection))
            top = rank_sequences(connection, "top", limit=NUM_SHOWN)
            bottom = rank_sequences(connection, "bottom", limit=NUM_SHOWN)
        most_wanted = describe_sequences(storage, record, corpus, top)
        least_wanted = describe_sequences(storage, record, corpus, bottom)
        assert record.reference is not None  # `open_scores` has refused a run without
        trust_remote_code = bool(record.config.get("corpus", {}).get("trust_remote_code", False))
        # A report is written at the end of every run, also by parents without PyTorch in memory: the model waits for `inspect --diversity`.
        if selection.unit == "sequence":
            diversity = provide_diversity(storage, corpus, selection, record.reference, trust_remote_code, embeds=False)
    metrics = read_student_metrics(storage, record)
    return ReportContent(
        record=record,
        corpus=corpus,
        domains=describe_domains(corpus, selection) if corpus is not None else [],
        selection=selection,
        histogram=histogram,
        most_wanted=most_wanted,
        least_wanted=least_wanted,
        curves={name: _make_curve(rows) for name, rows in metrics.items()},
        scaling=gather_curves(storage, record, metrics),
        truth=find_truth(storage, record),
        split_comparisons=compare_students(storage, record.on_own_split()),
        overlap=_describe_overlap(storage, record, corpus),
        comparisons=compare_students(storage, record),
        diversity=diversity,
        proxy=None if corpus is None else summarise_proxy(storage, record, corpus),
        sharing=None if selection is None else find_overlap_summary(storage, selection.selection_id),
        what_if=find_what_if(storage, record),
    )


def _describe_overlap(storage: Storage, record: RunRecord, corpus: CorpusManifest | None) -> str | None:
    """What held-out text from elsewhere shares with the corpus, in words; None where there is no such text, or it shares nothing."""
    texts = {
        MeasuredText.of(student.evaluation).elsewhere for student in record.students.values() if student.evaluation is not None
    }
    told = [
        describe_overlap(find_kept_overlap(storage, text, corpus)) for text in sorted(filter(None, texts)) if corpus is not None
    ]
    return "; ".join(filter(None, told)) or None


def _provide_scores(connection: Any, storage: Storage, corpus: CorpusManifest, selection: SelectionManifest) -> str:
    """The table of the difference scores of what was ranked."""
    if selection.unit == "sequence":
        return "candidate_scores"
    score = "sum" if selection.score == "sum" else "mean"
    document_scores(connection, storage, corpus, selection.teacher_id, selection.reference_id, score)
    return "document_scores"


def count_scores(connection: Any, selection: SelectionManifest, table: str = "candidate_scores") -> ScoreHistogram:
    """Histogram of a table's difference scores by domain, counted in DuckDB: first coarse, to find where the bulk lies."""
    quantiles = [domain.difference_score_quantiles for domain in selection.domains.values() if domain.num_candidates]
    minimum, maximum = min(values[0] for values in quantiles), max(values[-1] for values in quantiles)
    low, high = minimum, maximum
    coarse_width = (high - low) / 1000
    if coarse_width > 0:
        low, high = _find_bulk(_count_bins(connection, table, low, coarse_width), low, coarse_width)
    anchor = selection.threshold if selection.threshold is not None else 0.0
    # Thresholds are shown wherever they lie, and with them all that a very small ratio keeps.
    if shown := _list_thresholds(selection):
        low, high = min(low, *shown), (high if max(shown) < high else max(maximum, *shown))
    num_bins = min(120, max(24, math.ceil(4 * selection.num_candidates ** (1 / 3))))
    # Scores of one value only have no width of their own; a thousandth of a nat shows them as one bar.
    width = (high - low) / num_bins or 1e-3
    first = math.floor((low - anchor) / width)
    last = math.floor((high - anchor) / width)
    edges = anchor + width * np.arange(first, last + 2)
    counts = {domain: np.zeros(last - first + 1, dtype=np.int64) for domain in sorted(selection.domains)}
    num_below = num_above = 0
    for domain, index, count in _count_bins(connection, table, anchor, width):
        if index < first:
            num_below += count
        elif index > last:
            num_above += count
        else:
            counts[domain][index - first] = count
    return ScoreHistogram(edges, counts, num_below, num_above)


def _list_thresholds(selection: SelectionManifest) -> list[float]:
    """The scores from which was kept, of all or of each domain; none where something else than the difference decided."""
    if selection.threshold is not None:
        return [selection.threshold]
    thresholds = [domain.threshold for domain in selection.domains.values() if domain.threshold is not None]
    return thresholds if selection.ranks_by_difference else []


def _count_bins(connection: Any, table: str, anchor: float, width: float) -> list[tuple[str, int, int]]:
    """Rows (domain, bin index, count); bin i is [anchor + i * width, anchor + (i + 1) * width)."""
    query = f"SELECT domain, floor((difference_score - ?) / ?)::BIGINT AS bin, count(*) FROM {table} GROUP BY ALL ORDER BY ALL"
    rows: list[tuple[str, int, int]] = connection.execute(query, [anchor, width]).fetchall()
    return rows


def _find_bulk(rows: list[tuple[str, int, int]], low: float, width: float) -> tuple[float, float]:
    """The range that leaves out at most a thousandth of the sequences at each end, to the coarse bin."""
    totals: dict[int, int] = {}
    for _, index, count in rows:
        totals[index] = totals.get(index, 0) + count
    bins = sorted(totals)
    cumulative = np.cumsum([totals[index] for index in bins])
    left = bins[int(np.searchsorted(cumulative, cumulative[-1] * 0.001, side="right"))]
    right = bins[int(np.searchsorted(cumulative, cumulative[-1] * 0.999, side="left"))]
    return low + left * width, low + (right + 1) * width


def _make_curve(metrics: Mapping[int, CheckpointMetrics]) -> LossCurve:
    return make_loss_curve(np.array(list(metrics)), np.array([row.loss for row in metrics.values()]))


def make_loss_curve(step: np.ndarray[Any, Any], loss: np.ndarray[Any, Any]) -> LossCurve:
    """A curve of at most 800 points of all (num_steps,); `smooth_loss` at step s is the mean over the steps from 0.85 s to 1.15 s.

    Such a window grows with the step, so it follows the steep start and still calms the long end.
    """
    if len(step) > _MAX_CURVE_POINTS:
        # More points than the chart has pixels would only make the page larger: some 20 bytes each, for each student.
        stretches = np.array_split(np.arange(len(step)), _MAX_CURVE_POINTS)
        step = np.array([step[stretch].mean() for stretch in stretches])
        loss = np.array([loss[stretch].mean() for stretch in stretches])
    first = np.searchsorted(step, 0.85 * step, side="left")
    last = np.searchsorted(step, 1.15 * step, side="right")
    sums = np.concatenate([[0.0], np.cumsum(loss, dtype=np.float64)])
    return LossCurve(step, loss, (sums[last] - sums[first]) / (last - first))
