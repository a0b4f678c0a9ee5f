"""The stages of a run, each as one call of what does it: what a notebook calls, a task wraps, and the command line runs without a server.

Whatever is there already is found and not made again. Imports wait for the stage that needs them, as a selection needs no torch.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from miniplm.config.exports import ExportConfig
from miniplm.corpus.identity import plan_corpus
from miniplm.corpus.reader import find_corpus
from miniplm.errors import CorpusError
from miniplm.export.records import ExportManifest
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.run import StageRecord, StudentRecord
from miniplm.records.selections import SelectionManifest
from miniplm.run.model_entries import find_reference
from miniplm.run.overlap import measure_unasked, plan_left_out
from miniplm.run.plan import RunPlan
from miniplm.run.proxies import find_scorer_ids, judge_proxy, provide_labelled_corpus, require_run_proxy
from miniplm.run.signal_keys import provide_signal_keys
from miniplm.run.trainings import know_student
from miniplm.selection.ranking import find_selection, resolve_selection_id, select_sequences
from miniplm.storage.root import Storage

if TYPE_CHECKING:
    from miniplm.corpus.token_parts import MakeParts


_log = logging.getLogger("miniplm")


def prepare(
    storage: Storage, plan: RunPlan, on_progress: ProgressCallback = ignore_progress, make_parts: MakeParts | None = None
) -> tuple[CorpusManifest, StageRecord]:
    """Cuts the sources into sequences in shards, with some in each split that the run needs, and draws those that a proxy learns from.

    With `make_parts` the files of the corpus are read and tokenised by others; text from elsewhere never is, as it is little.
    """
    from miniplm.corpus.preparation import prepare_corpus

    started = time.monotonic()
    planned = plan_corpus(storage, plan.corpus, plan.tokenizer)
    reused = find_corpus(storage, planned.corpus_id) is not None
    if plan.execution.prepare == "workers" and not plan.is_on_work_pool and not reused:
        _log.warning(
            "execution.prepare is workers, but with execution.fan_out=local there are none: this process prepares the corpus"
        )
    manifest = prepare_corpus(storage, plan.corpus, on_progress, planned, make_parts)
    if plan.corpus.truth is not None:
        from miniplm.corpus.truth import provide_truth

        provide_truth(
            storage, plan.corpus, manifest, planned.found
        )  # now, while the sources are there; a wrong field costs no scores
    check_splits(plan, manifest)
    provide_labelled_corpus(storage, plan, manifest, on_progress)
    if plan.evaluation.sources and (plan.students or plan.selection.contamination == "drop"):
        from miniplm.run.outside_texts import prepare_text

        prepare_text(storage, plan, manifest, on_progress)
    # Of a corpus that extends another only what was made for it.
    num_tokens = sum(shard.num_tokens for shard in manifest.shards if shard.corpus_id == manifest.corpus_id)
    return manifest, _record("prepare", time.monotonic() - started, reused, num_tokens, "tokens")


def check_splits(plan: RunPlan, corpus: CorpusManifest) -> None:
    """Raises `CorpusError` where a prepared corpus has no sequence in a split that the run needs later."""
    needed = {
        "reference": plan.reference.architecture is not None,
        "heldout": bool(plan.students) and plan.evaluation.heldout,
    }
    for split in corpus.domains:
        # The reference is that of the first corpus, so that its scores stay good when the corpus grows.
        shards = corpus.root_shards(split) if split == "reference" else corpus.split_shards(split)
        if needed.get(split) and not shards:
            if split == "reference" and corpus.parent is not None:
                raise CorpusError(
                    f"corpus {corpus.lineage[0]}, which {corpus.corpus_id} extends, has no sequence in its reference split, and the "
                    "reference model is trained on that of the first corpus; prepare once with corpus.extend=false, which makes the "
                    "corpus anew of all files, or give reference.model"
                )
            raise CorpusError(
                f"corpus {corpus.corpus_id} has no sequence in its {split} split, which this run needs; "
                f"give corpus.splits.{split} a larger share, or the corpus more documents"
            )


def provide_reference(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, on_progress: ProgressCallback = ignore_progress
) -> tuple[ModelEntry, StageRecord]:
    """Trains the reference model where it is to be trained here and is not there yet."""
    entry = find_reference(storage, plan, corpus)
    if entry is not None and not entry.stored:
        return entry, _record("reference", 0.0, True, 0, "tokens")
    from miniplm.run.scoring_models import train_reference

    reused = entry is not None
    entry, training = train_reference(storage, plan, corpus, on_progress)
    return entry, _record("train reference", training.seconds, reused, training.num_tokens, "tokens")


def provide_teacher(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry, on_progress: ProgressCallback = ignore_progress
) -> tuple[RunPlan, StageRecord]:
    """Tunes the reference on the run's target text, of which it is the teacher then; the plan that knows it."""
    from miniplm.run.model_entries import find_tuned
    from miniplm.run.outside_texts import prepare_target
    from miniplm.run.scoring_models import tune_teacher

    if plan.target_id is None:  # else whoever could read its sources has prepared it
        prepare_target(storage, plan, on_progress)
    reused = find_tuned(storage, plan, corpus) is not None
    entry, training = tune_teacher(storage, plan, reference, name_progress("tune teacher", on_progress))
    known = plan.model_copy(update={"teacher_entry": entry})
    return known, _record("tune teacher", training.seconds, reused, training.num_tokens, "tokens")


def select(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry, on_progress: ProgressCallback = ignore_progress
) -> tuple[SelectionManifest, StageRecord]:
    """Joins the scores of both models and keeps the sequences with the largest difference score."""
    started = time.monotonic()
    if plan.scoring.proxy is not None:  # at another ratio it may not be good enough
        provide_signal_keys(storage, corpus, plan)
        judge_proxy(storage, require_run_proxy(storage, plan, corpus, reference), plan)
    scorer_ids = find_scorer_ids(storage, plan, corpus, reference)
    exclusions = plan_left_out(storage, plan, corpus, reference, on_progress=on_progress)
    selection_id = resolve_selection_id(storage, corpus, *scorer_ids, plan.selection, exclusions)
    manifest = find_selection(storage, selection_id)
    reused = manifest is not None
    if manifest is None:
        provide_signal_keys(storage, corpus, plan)
        manifest = select_sequences(storage, corpus, *scorer_ids, plan.selection, on_progress, exclusions)
    measure_unasked(storage, plan, corpus, manifest, on_progress)
    return manifest, _record("select", time.monotonic() - started, reused, manifest.num_candidates, manifest.units)


def export(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    config: ExportConfig,
    resume: bool = True,
    on_progress: ProgressCallback = ignore_progress,
) -> tuple[ExportManifest, StageRecord]:
    """Makes files of the selection for other people's trainers; goes on with an unfinished export unless `resume` is off."""
    from miniplm.export.exporting import export_selection
    from miniplm.run.exports import plan_export

    started = time.monotonic()
    job = plan_export(storage, plan, corpus, selection, config)
    manifest, reused = export_selection(job, resume, on_progress)
    return manifest, record_export(job.name, time.monotonic() - started, reused, manifest)


def record_export(name: str, seconds: float, reused: bool, manifest: ExportManifest) -> StageRecord:
    """What an export adds to the record of a run."""
    return _record(name, seconds, reused, manifest.num_source_tokens, "tokens")


def derive(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    student_name: str,
    on_progress: ProgressCallback = ignore_progress,
) -> None:
    """Makes the sequences that a student is trained and measured on, where they are not those of the corpus."""
    from miniplm.derived.sets import make_set
    from miniplm.run.students import list_pending_jobs

    for job in list_pending_jobs(storage, plan, corpus, selection, student_name):
        make_set(storage, job, plan.scoring.device, on_progress)


def train(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    student_name: str,
    on_progress: ProgressCallback = ignore_progress,
) -> tuple[StudentRecord, StageRecord]:
    """Trains one student from scratch, from its last checkpoint where there is one."""
    from miniplm.run.students import train_student
    from miniplm.training.records import find_training

    reused = find_training(storage, know_student(storage, plan, corpus, selection, student_name).training_id) is not None
    record, training = train_student(storage, plan, corpus, selection, student_name, on_progress)
    return record, _record(f"train {student_name}", training.seconds, reused, training.num_tokens, "tokens")


def evaluate(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    student_name: str,
    student: StudentRecord,
    on_progress: ProgressCallback = ignore_progress,
) -> tuple[StudentRecord, StageRecord]:
    """Measures a student and its milestones on the held-out split, and by the run's tasks; adds the results to its record."""
    from miniplm.run.student_records import is_evaluated
    from miniplm.run.students import evaluate_student

    reused = is_evaluated(storage, plan, corpus, student_name, student)
    on_loss, on_tasks = (
        name_progress(f"evaluate {student_name}", on_progress),
        name_progress(f"zero-shot {student_name}", on_progress),
    )
    record = evaluate_student(storage, plan, corpus, student_name, student, on_loss, on_tasks)
    evaluation = record.evaluation
    assert evaluation is not None
    return record, _record(f"evaluate {student_name}", evaluation.seconds, reused, evaluation.overall.num_scored_tokens, "tokens")


def name_progress(key: str, on_progress: ProgressCallback) -> ProgressCallback:
    """The callback of a piece of work that people know as `key`."""
    return lambda progress: on_progress(replace(progress, key=key))


def _record(name: str, seconds: float, reused: bool, num_units: int, unit: str) -> StageRecord:
    return StageRecord(name=name, seconds=seconds, reused=reused, num_units=num_units, unit=unit)
