"""Selects sequences, and shows by domain what was kept."""

from __future__ import annotations

import base64

from prefect import task

from miniplm.corpus.reader import load_corpus
from miniplm.records.manifests import ModelEntry, SelectionManifest
from miniplm.records.run import StageRecord
from miniplm.run import stages
from miniplm.run.plan import RunPlan
from miniplm.selection.plot import plot_selection
from miniplm.storage.root import Storage
from tasks.artifacts import LiveArtifact, make_key
from tasks.progress import report_progress
from tasks.retries import TASK_OPTIONS


@task(name="select-sequences", task_run_name="select {plan.selection.ratio} of {corpus_id}", **TASK_OPTIONS)
def select_sequences(plan: RunPlan, corpus_id: str, reference: ModelEntry) -> tuple[SelectionManifest, StageRecord]:
    """Joins the scores of both models and keeps the sequences with the largest difference score."""
    manifest, stage = stages.select(plan, load_corpus(Storage(plan.storage), corpus_id), reference, report_progress)
    rows = [
        {
            "domain": domain,
            "candidates": counts.num_candidates,
            "kept": counts.num_selected,
            "kept share": f"{counts.num_selected / counts.num_candidates:.1%}",
            "median difference score": f"{counts.difference_score_quantiles[3]:.3f}",
        }
        for domain, counts in manifest.domains.items()
    ]
    summary = (
        f"{manifest.selection_id}: {manifest.num_selected:,} of {manifest.num_candidates:,} sequences kept "
        f"({manifest.num_selected_tokens:,} tokens), {manifest.num_negative:,} candidates with a negative difference score"
    )
    LiveArtifact("table", make_key("selection", corpus_id)).publish(rows, summary)
    plot = base64.b64encode(plot_selection(manifest)).decode()
    LiveArtifact("image", make_key("selection-plot", corpus_id)).publish(f"data:image/png;base64,{plot}", summary)
    return manifest, stage
