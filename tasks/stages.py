"""The stages of a run as tasks: each one call of `miniplm.run.stages`, with what people look at in the UI.

A task is handed what it works on; whoever calls it has opened the storage root and read the manifests, once.
"""

from __future__ import annotations

import base64

from prefect import get_run_logger, task

from miniplm.config.run import RunConfig
from miniplm.corpus.token_parts import MakeParts
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.proxies import ProxyManifest
from miniplm.records.run import StageRecord, StudentRecord
from miniplm.records.selections import SelectionManifest
from miniplm.report import write_report as write_page
from miniplm.run import proxies, resolution, stages
from miniplm.run.plan import RunPlan
from miniplm.run.trainings import know_student
from miniplm.selection.plot import plot_selection
from miniplm.storage.root import Storage
from tasks.artifacts import LiveArtifact, make_key
from tasks.progress import report_progress, training_progress
from tasks.retries import TASK_OPTIONS
from tasks.scoring import release_model


@task(name="resolve-plan", task_run_name="check inputs", **TASK_OPTIONS)
def resolve_plan(config: RunConfig) -> RunPlan:
    """Says what a configuration means here, and refuses what would fail only after hours: storage, sources, models and their tokenizers."""
    return resolution.resolve(config)


@task(name="prepare-corpus", task_run_name="prepare corpus", **TASK_OPTIONS)
def prepare_corpus(storage: Storage, plan: RunPlan, make_parts: MakeParts | None = None) -> tuple[CorpusManifest, StageRecord]:
    """Cuts the sources into sequences in shards; with `make_parts` others read and tokenise them."""
    return stages.prepare(storage, plan, report_progress, make_parts)


@task(name="provide-reference", task_run_name="train or find the reference of {corpus.corpus_id}", **TASK_OPTIONS)
def provide_reference(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> tuple[ModelEntry, StageRecord]:
    """Trains the reference model where it is to be trained here and is not there yet."""
    with training_progress("train reference", f"train reference {corpus.corpus_id}") as on_progress:
        return stages.provide_reference(storage, plan, corpus, on_progress)


@task(name="provide-teacher", task_run_name="tune or find the teacher of {plan.name}", **TASK_OPTIONS)
def provide_teacher(storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry) -> tuple[RunPlan, StageRecord]:
    """Tunes the reference on the run's target text, where it is not tuned yet."""
    with training_progress("tune teacher", f"tune teacher {plan.name}") as on_progress:
        return stages.provide_teacher(storage, plan, corpus, reference, on_progress)


@task(name="fit-proxy", task_run_name="fit the proxy of {corpus.corpus_id}", **TASK_OPTIONS)
def fit_proxy(storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry) -> ProxyManifest:
    """Fits the proxy of a run where it is not there yet, and says how well it predicts."""
    release_model()
    try:
        manifest = proxies.provide_proxy(storage, plan, corpus, reference, report_progress)
    finally:
        release_model()
    fidelity = proxies.measure_run_proxy(storage, manifest, plan)
    get_run_logger().info("proxy %s: %s", manifest.proxy_id, fidelity.describe())
    return manifest


@task(name="select-sequences", task_run_name="select {plan.selection.title} of {corpus.corpus_id}", **TASK_OPTIONS)
def select_sequences(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry
) -> tuple[SelectionManifest, StageRecord]:
    """Joins the scores of both models and keeps the sequences with the largest difference score; shows by domain what was kept."""
    manifest, stage = stages.select(storage, plan, corpus, reference, report_progress)
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
        f"{manifest.selection_id}: {manifest.num_selected:,} of {manifest.num_candidates:,} {manifest.units} kept "
        f"({manifest.num_selected_tokens:,} tokens), {manifest.num_negative:,} candidates with a negative difference score"
    )
    LiveArtifact("table", make_key("selection", corpus.corpus_id)).publish(rows, summary)
    plot = base64.b64encode(plot_selection(manifest)).decode()
    LiveArtifact("image", make_key("selection-plot", corpus.corpus_id)).publish(f"data:image/png;base64,{plot}", summary)
    return manifest, stage


@task(name="train-student", task_run_name="train {student_name} on {selection.selection_id}", **TASK_OPTIONS)
def train_student(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> tuple[StudentRecord, StageRecord]:
    """Trains one student from scratch, from its last checkpoint where there is one."""
    training_id = know_student(storage, plan, corpus, selection, student_name).training_id
    with training_progress(f"train {student_name}", f"train {student_name} {training_id}") as on_progress:
        return stages.train(storage, plan, corpus, selection, student_name, on_progress)


@task(name="evaluate-student", task_run_name="evaluate {student_name} on {corpus.corpus_id}", **TASK_OPTIONS)
def evaluate_student(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, student_name: str, student: StudentRecord
) -> tuple[StudentRecord, StageRecord]:
    """Measures a student and its milestones on the held-out split, and by the run's tasks; adds the results to its record."""
    return stages.evaluate(storage, plan, corpus, student_name, student, report_progress)


@task(name="write-report", task_run_name="report {run_name}", **TASK_OPTIONS)
def write_report(storage: Storage, run_name: str) -> str:
    """Writes `report.html`, links to it, and returns where it lies."""
    url = write_page(storage, run_name)
    link = url if "://" in url else f"file://{url}"
    description = f"The report of {run_name}, at `{url}`. A browser opens it where it sees that place; else copy the file, it is whole in itself."
    LiveArtifact("markdown", make_key("report", run_name)).publish(f"[report.html of {run_name}]({link})", description)
    return url
