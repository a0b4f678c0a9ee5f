"""The commands for one stage each: by the flows that `run` calls where a Prefect server sees them, else by the library's own calls."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli.options import Asked, on_a_run, print_json, take_one, try_again, watched_stage
from miniplm.errors import ConfigError, list_offenders
from miniplm.progress import ignore_progress

if TYPE_CHECKING:
    from miniplm.progress import ProgressCallback
    from miniplm.records.manifests import CorpusManifest, ModelEntry
    from miniplm.records.run import StudentRecord
    from miniplm.records.selections import SelectionManifest
    from miniplm.run.plan import RunPlan
    from miniplm.storage.root import Storage

Students = Annotated[list[str] | None, typer.Option(help="Only this student; may be repeated. Default: all of the configuration.")]


@on_a_run
def prepare(asked: Asked) -> None:
    """Cut the documents of the sources into sequences in shards; rejected records go to quarantine with their reason."""
    storage, plan = begin(asked)
    with watched_stage(plan, asked.verbose, asked.as_json) as (console, on_progress):
        if on_progress is None:
            from flows.stages import prepare_corpus

            manifest, _ = prepare_corpus(plan)
        else:
            from miniplm.run import stages

            manifest, _ = try_again(partial(stages.prepare, storage, plan, on_progress))
    if asked.as_json:
        print_json(manifest.as_json())
        return
    from flows.cli.tables import print_corpus

    print_corpus(console, storage, manifest)


@on_a_run
def train_reference(asked: Asked) -> None:
    """Train the reference model on the reference split (nothing to do where the configuration gives a model)."""
    storage, plan = begin(asked)
    with watched_stage(plan, asked.verbose, asked.as_json) as (console, on_progress):
        plan, corpus = require_corpus(storage, plan)
        if on_progress is None:
            from flows.train_reference import train_reference as flow

            entry, _ = flow(plan, corpus.corpus_id)
        else:
            from miniplm.run import stages

            named = stages.name_progress("train reference", on_progress)
            entry, _ = try_again(partial(stages.provide_reference, storage, plan, corpus, named))
    say(console, asked.as_json, entry.as_json(), f"reference model {entry.model_id} ({entry.num_parameters:,} parameters)")


@on_a_run
def tune_teacher(asked: Asked) -> None:
    """Tune the reference on target text, where that is the teacher (`teacher.tuned_on`); a teacher that is given needs no tuning."""
    storage, plan = begin(asked)
    if plan.teacher.tuned_on is None:
        raise ConfigError(f"the teacher of run {plan.name} is given (teacher.model), so there is nothing to tune")
    with watched_stage(plan, asked.verbose, asked.as_json) as (console, on_progress):
        plan, corpus = require_corpus(storage, plan)
        reference = require_reference(storage, plan, corpus)
        if on_progress is None:
            from flows.tune_teacher import tune_teacher as flow

            plan, _ = flow(plan, corpus.corpus_id, reference)
        else:
            from miniplm.run import stages

            plan, _ = try_again(partial(stages.provide_teacher, storage, plan, corpus, reference, on_progress))
    entry = plan.require_teacher()
    say(console, asked.as_json, entry.as_json(), f"teacher {entry.model_id}: the reference {reference.model_id}, tuned")


@on_a_run
def select(
    asked: Asked,
    ratio: Annotated[
        float | None, typer.Option(help="Kept share of the candidates, in (0, 1]; the same as --set selection.ratio=...")
    ] = None,
    what_if: Annotated[
        str | None,
        typer.Option(
            "--what-if",
            metavar="GRID",
            help="Select nothing: say what each selection of a grid would keep, e.g. ratio=0.1:0.9,within=corpus|domain,temperature=0|0.1",
        ),
    ] = None,
) -> None:
    """Keep the sequences with the largest difference score, from the scores that are there; another ratio costs no new scores."""
    changes = [change for change in asked.overrides or () if change.partition("=")[0].strip() == "selection.ratio"]
    take_one({"--ratio": ratio, "--set selection.ratio": changes})
    storage, plan = begin(
        asked, *([] if ratio is None else [f"selection.ratio={ratio!r}", "selection.tokens=null", "selection.threshold=null"])
    )
    with watched_stage(plan, asked.verbose, asked.as_json) as (console, on_progress):
        plan, corpus = require_corpus(storage, plan)
        reference = require_reference(storage, plan, corpus)
        if what_if is not None:
            from miniplm.run.what_if import try_grid

            tried = try_grid(storage, plan, corpus, reference, what_if, on_progress or ignore_progress)
        elif on_progress is None:
            from flows.stages import select_sequences

            manifest, _ = select_sequences(plan, corpus.corpus_id, reference)
        else:
            from miniplm.run import stages

            manifest, _ = try_again(partial(stages.select, storage, plan, corpus, reference, on_progress))
    if what_if is not None:
        from flows.cli.what_if import print_what_if

        print_json(tried.as_json()) if asked.as_json else print_what_if(console, tried)
        return
    from miniplm.run.overlap import find_overlap_summary

    overlap = find_overlap_summary(storage, manifest.selection_id)
    truth = None
    if plan.corpus.truth is not None and manifest.unit == "sequence":
        from miniplm.run.truth import judge_selection

        truth = judge_selection(storage, plan.corpus, corpus, manifest)
    if asked.as_json:
        told = {"overlap": overlap.as_json()} | ({} if truth is None else {"truth": truth.as_json()})
        print_json(manifest.as_json() | told)
        return
    from flows.cli.overlap import print_overlap
    from flows.cli.tables import print_selection

    print_selection(console, storage, manifest)
    print_overlap(console, overlap, plan.name)
    if truth is not None:
        from flows.cli.truth import print_truth

        print_truth(console, truth)


@on_a_run
def train(
    asked: Asked,
    student: Students = None,
) -> None:
    """Train the students on the selection (or on the baseline's data), from their last checkpoints."""
    storage, plan = begin(asked)
    names = _student_names(plan, student)
    with watched_stage(plan, asked.verbose, asked.as_json) as (console, on_progress):
        plan, corpus, selection = require_selection(storage, plan)
        if on_progress is None:
            from flows.train_student import train_student

            records = {name: train_student(plan, corpus.corpus_id, selection.selection_id, name)[0] for name in names}
        else:
            records = {name: _train(storage, plan, corpus, selection, name, on_progress) for name in names}
    lines = [
        f"{name}: {record.describe_steps()}, {record.num_tokens:,} tokens, final loss {record.final_loss:.3f} nats a token: {record.folder}"
        for name, record in records.items()
    ]
    say(console, asked.as_json, {name: record.as_json() for name, record in records.items()}, "\n".join(lines))


def _train(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, name: str, on_progress: ProgressCallback
) -> StudentRecord:
    from miniplm.run import stages

    try_again(partial(stages.derive, storage, plan, corpus, selection, name, on_progress))
    named = stages.name_progress(f"train {name}", on_progress)
    record, _ = try_again(partial(stages.train, storage, plan, corpus, selection, name, named))
    return record


@on_a_run
def evaluate(
    asked: Asked,
    student: Students = None,
) -> None:
    """Measure trained students and their milestones on the held-out split, and by zero-shot tasks; compare them with the baseline."""
    storage, plan = begin(asked)
    names = _student_names(plan, student)
    with watched_stage(plan, asked.verbose, asked.as_json) as (console, on_progress):
        from miniplm.run.student_records import find_student, require_student

        plan, corpus, selection = require_selection(storage, plan)
        records = {}
        for name in names:
            trained = require_student(storage, plan, corpus, selection, name)
            if on_progress is None:
                from flows.stages import evaluate_student

                records[name], _ = evaluate_student(plan, corpus.corpus_id, name, trained)
            else:
                from miniplm.run import stages

                records[name], _ = try_again(partial(stages.evaluate, storage, plan, corpus, name, trained, on_progress))
    from flows.cli.results import describe_results, print_results
    from miniplm.records.run import RunRecord

    # A baseline that was measured before is compared with, though it was not asked for now.
    found = {name: records.get(name) or find_student(storage, plan, corpus, selection, name) for name in _student_names(plan, None)}
    everyone = {name: student for name, student in found.items() if student is not None}
    run = RunRecord(run_name=plan.name, config=plan.config, students=everyone, started_at="")
    if asked.as_json:
        print_json(describe_results(storage, run, names))
    else:
        print_results(console, storage, run)


@on_a_run
def report(asked: Asked) -> None:
    """Write the report of a run again, as far as the run has come."""
    storage, plan = begin(asked)
    from miniplm.records.run import save_run
    from miniplm.run.status import provide_record
    from miniplm.run.truth import with_truth

    config = asked.resolve_config()
    record = provide_record(storage, config)
    if (relabelled := with_truth(record, config)) != record:
        save_run(storage, relabelled)
    with watched_stage(plan, asked.verbose, asked.as_json) as (console, on_progress):
        if on_progress is None:
            from flows.stages import write_report

            url = write_report(plan.storage, plan.name)
        else:
            from miniplm.report import write_report as write_page

            url = try_again(partial(write_page, storage, plan.name))
    say(console, asked.as_json, {"report": url}, f"report: {url}")


def begin(asked: Asked, *overrides: str, emulated: bool = False) -> tuple[Storage, RunPlan]:
    """The storage root and the plan of the run, with its inputs checked as `run` does."""
    from miniplm.run.resolution import resolve
    from miniplm.storage.root import Storage

    plan = resolve(asked.resolve_config(*overrides), emulated=emulated)
    return Storage(plan.storage), plan


def require_corpus(storage: Storage, plan: RunPlan) -> tuple[RunPlan, CorpusManifest]:
    """The corpus of the run, and the plan with the teacher that is tuned on it; raises what says which command makes the corpus."""
    from miniplm.run import model_entries, status

    corpus = status.require_corpus(storage, plan)
    return model_entries.with_teacher(storage, plan, corpus), corpus


def require_reference(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> ModelEntry:
    """The reference of the run; raises what says which command makes it."""
    from miniplm.run import model_entries

    return model_entries.require_reference(storage, plan, corpus)


def require_selection(storage: Storage, plan: RunPlan) -> tuple[RunPlan, CorpusManifest, SelectionManifest]:
    """As `require_corpus`, with the selection made of it. Raises what says which command makes what is not there."""
    from miniplm.run import status

    plan, corpus = require_corpus(storage, plan)
    return plan, corpus, status.require_selection(storage, plan, corpus, require_reference(storage, plan, corpus))


def _student_names(plan: RunPlan, wanted: list[str] | None) -> list[str]:
    known = [student.name for student in plan.students]
    unknown = [name for name in wanted or [] if name not in known]
    if unknown:
        raise ConfigError(
            f"run {plan.name} has no student {list_offenders(unknown)}; its students are {list_offenders(known) or 'none'}"
        )
    return wanted or known


def say(console: Console, as_json: bool, facts: object, line: str) -> None:
    """Prints facts as JSON, or the line."""
    if as_json:
        print_json(facts)
    else:
        console.print(line, markup=False, soft_wrap=True)
