"""How far a run has come, judged by what verifies at the storage root and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from miniplm import layout
from miniplm.config.run import ExportConfig, RunConfig
from miniplm.corpus.identity import plan_corpus
from miniplm.corpus.reader import find_corpus, load_corpus
from miniplm.corpus.taken_files import list_files_without_documents
from miniplm.errors import (
    ConfigError,
    CorpusError,
    DamagedFileError,
    DerivedError,
    EvaluationError,
    MiniplmError,
    RunError,
    ScoreJoinError,
    SourceError,
)
from miniplm.records.manifests import CorpusManifest, ModelEntry, Record
from miniplm.records.run import RunRecord, load_run, save_run
from miniplm.records.selections import SelectionManifest
from miniplm.run.model_entries import find_reference, with_teacher
from miniplm.run.outside_texts import resolve_text_id
from miniplm.run.overlap import name_selection
from miniplm.run.plan import RunPlan
from miniplm.run.proxies import find_labelled_corpus, find_run_proxy, find_scorer_ids
from miniplm.run.resolution import resolve
from miniplm.run.student_records import find_student, is_evaluated, list_needed_sets
from miniplm.run.trainings import know_student
from miniplm.scoring.shards import check_score_shards
from miniplm.selection.ranking import find_selection, load_selection
from miniplm.storage.root import Storage
from miniplm.versions import list_versions

if TYPE_CHECKING:
    from miniplm.derived.sets import DerivedJob

State = Literal["done", "partial", "missing", "broken"]


class ShardStatus(Record):
    """One shard that is not done: missing, or broken with the reason."""

    shard_index: int
    state: Literal["missing", "broken"]
    reason: str


class StageStatus(Record):
    """One stage: `num_done` of `num_total` `unit` are there and verify; `shards` are those that do not."""

    name: str
    state: State
    num_done: int
    num_total: int
    unit: str
    detail: str = ""
    shards: tuple[ShardStatus, ...] = ()


class RunStatus(Record):
    """All stages of a run in their order; `complete` when every one is done."""

    run_name: str
    storage: str
    stages: tuple[StageStatus, ...]
    complete: bool


def check_run(storage: Storage, plan: RunPlan) -> RunStatus:
    """Verifies every artifact that the plan names: files, digests and counts. Computes and writes nothing.

    Of a corpus that grows and has new files, it is the corpus so far; its first stage is then `partial` at best.

    Raises `SourceError` where the sources cannot be read.
    """
    stages: list[StageStatus] = []
    planned = plan_corpus(storage, plan.corpus, plan.tokenizer)
    prepared = find_corpus(storage, planned.corpus_id)
    plan, corpus = with_teacher(storage, plan, prepared), prepared or planned.parent
    stages.append(_corpus_stage(storage, corpus, num_new_files=len(planned.files) if corpus and corpus is planned.parent else 0))
    if plan.evaluation.sources and plan.students:
        stages.append(_corpus_stage(storage, find_corpus(storage, resolve_text_id(storage, plan)), 0, "prepare held-out text"))
    reference = find_reference(storage, plan, corpus) if corpus else None
    labels = find_labelled_corpus(storage, plan, corpus) if corpus else None
    by_teacher, of_reference = _scores_stage(storage, labels, plan.teacher_entry, "teacher"), _model_stage("reference", reference)
    if plan.teacher.tuned_on is not None:
        stages += [of_reference, _model_stage("tune teacher", plan.teacher_entry), by_teacher]
    else:
        stages += [by_teacher, of_reference]
    stages.append(_scores_stage(storage, corpus, reference, "reference"))
    if plan.scoring.proxy is not None:
        stages += _proxy_stages(storage, plan, corpus, reference)
    stages += _later_stages(storage, plan, corpus, reference)
    return RunStatus(
        run_name=plan.name, storage=storage.root, stages=tuple(stages), complete=all(stage.state == "done" for stage in stages)
    )


def find_complete_run(storage: Storage, plan: RunPlan) -> RunRecord | None:
    """The record of a run of exactly this configuration, where it is finished and everything it made still verifies."""
    try:
        record = load_run(storage, plan.name)
    except RunError:
        return None
    if record.config != plan.config or record.finished_at is None or not storage.exists(layout.run_report(plan.name)):
        return None
    return record if check_run(storage, plan).complete else None


def provide_record(storage: Storage, config: RunConfig) -> RunRecord:
    """The record of a run, saved; where its stages were run one by one it is made of what they left, anew as they go on.

    One that is there is read though the models, files or corpus that it would be made of are gone.
    Raises `CorpusError` where there is none, and not even the corpus is there.
    """
    try:
        earlier = load_run(storage, config.name)
    except RunError:
        earlier = None
    if earlier is not None and earlier.stages:
        return earlier
    try:
        record = _make_record(storage, config, earlier)
    except (ConfigError, MiniplmError):
        if earlier is None:
            raise
        return earlier
    if record != earlier:
        save_run(storage, record)
    return record


def _make_record(storage: Storage, config: RunConfig, earlier: RunRecord | None) -> RunRecord:
    plan = resolve(config, checks=False)
    corpus = require_corpus(storage, plan)
    plan, reference = with_teacher(storage, plan, corpus), find_reference(storage, plan, corpus)
    selection = _find_selection(storage, plan, corpus, reference)
    proxy = find_run_proxy(storage, plan, corpus, reference)
    students = {
        student.name: find_student(storage, plan, corpus, selection, student.name) for student in plan.students if selection
    }
    return RunRecord(
        run_name=plan.name,
        config=plan.config,
        corpus_id=corpus.corpus_id,
        teacher=plan.teacher_entry,
        reference=reference,
        proxy=proxy.entry if proxy else None,
        selection_id=selection.selection_id if selection else None,
        students={name: student for name, student in students.items() if student is not None},
        versions=list_versions(),
        started_at=earlier.started_at if earlier else datetime.now(UTC).isoformat(timespec="seconds"),
    )


def require_corpus(storage: Storage, plan: RunPlan) -> CorpusManifest:
    """The corpus of a run, prepared. Raises `CorpusError` where it is not."""
    return load_corpus(storage, plan_corpus(storage, plan.corpus, plan.tokenizer).corpus_id)


def require_selection(storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry) -> SelectionManifest:
    """The selection of a run. Raises `ScoreJoinError` where scores are missing, `CorpusError` where nothing is selected yet."""
    return load_selection(storage, name_selection(storage, plan, corpus, reference))


def _find_selection(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest | None, reference: ModelEntry | None
) -> SelectionManifest | None:
    if corpus is None or reference is None or plan.teacher_entry is None:
        return None
    try:
        return find_selection(storage, name_selection(storage, plan, corpus, reference))
    except ScoreJoinError:
        return None


def _find_named_selection(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest | None, reference: ModelEntry | None
) -> tuple[SelectionManifest | None, str]:
    """As `_find_selection`; where what it is made of besides scores is gone, so that it cannot be named, the one that the run has on record, and why."""
    try:
        return _find_selection(storage, plan, corpus, reference), ""
    except (ConfigError, CorpusError, EvaluationError, SourceError) as error:
        problem = str(error)
    assert corpus is not None
    assert reference is not None
    try:
        record = load_run(storage, plan.name)
    except RunError:
        return None, problem
    selection = find_selection(storage, record.selection_id) if record.selection_id is not None else None
    is_same = selection is not None and (selection.corpus_id, (selection.teacher_id, selection.reference_id)) == (
        corpus.corpus_id,
        find_scorer_ids(storage, plan, corpus, reference),
    )
    if not is_same or any(record.config.get(name) != plan.config.get(name) for name in ("selection", "evaluation")):
        return None, problem
    return selection, f"made when this was not so: {problem}"


def _model_stage(name: str, entry: ModelEntry | None) -> StageStatus:
    return StageStatus(
        name=name,
        state="done" if entry else "missing",
        num_done=int(entry is not None),
        num_total=1,
        unit="models",
        detail=entry.model_id if entry else "",
    )


def _corpus_stage(storage: Storage, corpus: CorpusManifest | None, num_new_files: int, name: str = "prepare") -> StageStatus:
    if corpus is None:
        return StageStatus(name=name, state="missing", num_done=0, num_total=0, unit="shards")
    broken = []
    for shard in corpus.shards:
        relative = layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index)
        if not storage.holds(relative, shard.digest):
            is_there = storage.exists(relative)
            reason = f"{relative} {'is not what the manifest says' if is_there else 'is gone'}"
            broken.append(ShardStatus(shard_index=shard.shard_index, state="broken" if is_there else "missing", reason=reason))
    return StageStatus(
        name=name,
        state="broken" if broken else "partial" if num_new_files else "done",
        num_done=len(corpus.shards) - len(broken),
        num_total=len(corpus.shards),
        unit="shards",
        detail=", ".join([corpus.corpus_id, *_describe_taken(corpus, num_new_files)]),
        shards=tuple(broken),
    )


def _describe_taken(corpus: CorpusManifest, num_new_files: int) -> list[str]:
    counts = {
        "new source files to add": num_new_files,
        "records rejected": sum(corpus.rejected.values()),
        "files without a document": len(list_files_without_documents(corpus)),
        "files left out": sum(entry.num_files for entry in corpus.left_out),
    }
    return [f"{count:,} {what}" for what, count in counts.items() if count]


def _scores_stage(storage: Storage, corpus: CorpusManifest | None, entry: ModelEntry | None, role: str) -> StageStatus:
    name = f"score {role}"
    if corpus is None or entry is None:
        num_total = len(corpus.split_shards("candidate")) if corpus else 0
        return StageStatus(name=name, state="missing", num_done=0, num_total=num_total, unit="shards")
    states = check_score_shards(storage, corpus, entry.model_id)
    left = [
        ShardStatus(shard_index=state.shard_index, state=state.state, reason=state.reason)
        for state in states
        if state.state != "done"
    ]
    state: State = (
        "done"
        if not left
        else "broken"
        if any(shard.state == "broken" for shard in left)
        else "missing"
        if len(left) == len(states)
        else "partial"
    )
    return StageStatus(
        name=name,
        state=state,
        num_done=len(states) - len(left),
        num_total=len(states),
        unit="shards",
        detail=entry.model_id,
        shards=tuple(left),
    )


def _proxy_stages(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest | None, reference: ModelEntry | None
) -> list[StageStatus]:
    proxy = find_run_proxy(storage, plan, corpus, reference) if corpus else None
    fitted = StageStatus(
        name="fit proxy",
        state="done" if proxy else "missing",
        num_done=int(proxy is not None),
        num_total=1,
        unit="models",
        detail=proxy.proxy_id if proxy else "",
    )
    return [fitted, _scores_stage(storage, corpus, proxy.entry if proxy else None, "proxy")]


def _derived_stage(storage: Storage, job: DerivedJob, student_name: str) -> StageStatus:
    """A set that a student still needs: how many of its shards are made."""
    from miniplm.derived.sets import check_shards

    try:
        sources = job.list_sources(storage)
    except DerivedError:
        sources = []  # it is made of another set, which is yet to be made
    states = check_shards(storage, job.derived_id, sources)
    left = [state for state in states if state.state != "done"]
    state: State = "missing" if len(left) == len(states) else "partial" if left else "done"
    return StageStatus(
        name=f"derive {student_name}",
        state="broken" if any(shard.state == "broken" for shard in left) else state,
        num_done=len(states) - len(left),
        num_total=len(states),
        unit="shards",
        detail=f"{job.derived_id}: {job.name}",
        shards=tuple(ShardStatus(shard_index=shard.shard_index, state=shard.state, reason=shard.reason) for shard in left),
    )


def _export_stage(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest | None, selection: SelectionManifest | None, export: ExportConfig
) -> StageStatus:
    from miniplm.run.exports import find_export, plan_export

    state: State = "missing"
    num_files, detail = 0, export.to
    if corpus and selection:
        try:
            found = find_export(plan_export(storage, plan, corpus, selection, export))
            state, num_files = ("done", found.num_files) if found else (state, 0)
        except DamagedFileError as error:
            state, detail = "broken", str(error)
    return StageStatus(
        name=f"export {export.format}", state=state, num_done=num_files, num_total=num_files, unit="files", detail=detail
    )


def _later_stages(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest | None, reference: ModelEntry | None
) -> list[StageStatus]:
    selection, problem = _find_named_selection(storage, plan, corpus, reference)
    stages = [
        StageStatus(
            name="select",
            state="done" if selection else "missing",
            num_done=selection.num_selected if selection else 0,
            num_total=selection.num_selected if selection else 0,
            unit="sequences",
            detail="; ".join(filter(None, (selection.selection_id if selection else "", problem))),
        )
    ]
    stages += [_export_stage(storage, plan, corpus, selection, export) for export in plan.exports]
    for student in plan.students:
        if corpus and selection and list_needed_sets(storage, plan, corpus, selection, student.name):
            from miniplm.run.students import list_pending_jobs

            pending = list_pending_jobs(storage, plan, corpus, selection, student.name)
            stages += [_derived_stage(storage, job, student.name) for job in pending]
        record = find_student(storage, plan, corpus, selection, student.name) if corpus and selection else None
        stages.append(
            StageStatus(
                name=f"train {student.name}",
                state="done" if record else "missing",
                num_done=record.num_steps if record else 0,
                num_total=record.num_steps if record else _count_planned_steps(storage, plan, student.name, corpus, selection),
                unit="steps",
                detail=record.folder if record else "",
            )
        )
        if plan.evaluation.measures_losses:
            evaluated = record is not None and corpus is not None and is_evaluated(storage, plan, corpus, student.name, record)
            stages.append(
                StageStatus(
                    name=f"evaluate {student.name}",
                    state="done" if evaluated else "missing",
                    num_done=int(evaluated),
                    num_total=1,
                    unit="evaluations",
                )
            )
    return stages


def _count_planned_steps(
    storage: Storage, plan: RunPlan, student_name: str, corpus: CorpusManifest | None, selection: SelectionManifest | None
) -> int:
    """Steps of a student that is not trained yet; 0 where the data will decide."""
    student = plan.find_student(student_name)
    if student.flop_matched:  # what the teacher costs is only known with its files
        return know_student(storage, plan, corpus, selection, student_name).steps or 0 if corpus and selection else 0
    return student.training.steps or 0
