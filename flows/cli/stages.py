"""The commands for one stage each: the same flows that `run` calls, with the ids that the storage root knows."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console

from flows.cli.options import Asked, as_begun, on_a_run, print_json, watched_flow
from miniplm.artifacts import ModelEntry
from miniplm.config import RunConfig, config_as_dict
from miniplm.errors import ConfigError, ModelError, list_offenders

Role = Literal["teacher", "reference"]
Students = Annotated[list[str] | None, typer.Option(help="Only this student; may be repeated. Default: all of the configuration.")]


@on_a_run
def prepare(asked: Asked) -> None:
    """Cut the documents of the sources into sequences in shards; rejected records go to quarantine with their reason."""
    config = _begin(asked)
    with watched_flow(asked.verbose, asked.as_json) as console:
        from flows.prepare_corpus import prepare_corpus
        from miniplm.corpus.reader import load_corpus
        from miniplm.storage import Storage

        corpus_id, _ = prepare_corpus(config)
    manifest = load_corpus(Storage(config.storage), corpus_id)
    if asked.as_json:
        print_json(manifest.as_json())
        return
    from flows.cli.tables import print_corpus

    print_corpus(console, Storage(config.storage), manifest)


@on_a_run
def train_reference(asked: Asked) -> None:
    """Train the reference model on the reference split (nothing to do where the configuration gives a model)."""
    config = _begin(asked)
    with watched_flow(asked.verbose, asked.as_json) as console:
        from flows.train_reference import train_reference as flow

        entry, _ = flow(config, _find_corpus_id(config))
    _say(console, asked.as_json, entry.as_json(), f"reference model {entry.model_id} ({entry.num_parameters:,} parameters)")


@on_a_run
def score(
    asked: Asked,
    model: Annotated[Role | None, typer.Option("--model", help="Which of the two models scores.")] = None,
    shard: Annotated[
        list[int] | None,
        typer.Option("--shard", min=0, help="Only this shard; may be repeated. Default: all that are missing or broken."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also score shards again whose scores are there and verify.")] = False,
    calibrate: Annotated[
        int | None,
        typer.Option(
            "--calibrate",
            min=2,
            metavar="N",
            help="Score nothing for good: score N candidates by both models in their dtypes and in float32, and say what the dtypes change.",
        ),
    ] = None,
) -> None:
    """Score the candidate shards by one model; shards with verified scores are not scored again."""
    if (model is None) == (calibrate is None):
        raise ConfigError("give either --model teacher or --model reference (score its shards), or --calibrate N (compare dtypes)")
    config = _begin(asked, emulated=model is None)
    if model is None:
        assert calibrate is not None
        _calibrate(config, calibrate, asked.as_json, asked.verbose)
        return
    with watched_flow(asked.verbose, asked.as_json) as console:
        from flows.score_corpus import score_corpus

        corpus_id = _find_corpus_id(config)
        entry = _find_scorer(config, corpus_id, model)
        _check_gate(config, corpus_id, model, entry)
        stage = score_corpus(config, corpus_id, entry, model, shard, again)
    _say(
        console,
        asked.as_json,
        {"corpus_id": corpus_id, "model": entry.as_json(), "stage": stage.as_json()},
        f"{stage.num_units:,} tokens of {corpus_id} are scored by {entry.model_id}"
        + (" (nothing was missing)" if stage.reused else ""),
    )


def _check_gate(config: RunConfig, corpus_id: str, model: Role, entry: ModelEntry) -> None:
    """Raises `FidelityError` where a calibration refuses the dtypes, or fp8 has none. Without the other model there is nothing to compare."""
    from miniplm.corpus.reader import load_corpus
    from miniplm.scorers import find_reference, identify_teacher
    from miniplm.scoring.calibration import check_fidelity, needs_calibration
    from miniplm.storage import Storage

    storage = Storage(config.storage)
    corpus = load_corpus(storage, corpus_id)
    if model == "reference":
        check_fidelity(storage, corpus, identify_teacher(config), entry, config)
        return
    reference = find_reference(storage, config, corpus)
    if reference is not None:
        check_fidelity(storage, corpus, entry, reference, config)
    elif needs_calibration(entry.dtype, config.reference.dtype):
        raise ModelError(
            "fp8 scores only once it was compared with float32, by both models, and the reference is not trained yet; "
            "run `miniplm train-reference CONFIG`, then `miniplm score CONFIG --calibrate 1024`"
        )


def _calibrate(config: RunConfig, num_sequences: int, as_json: bool, verbose: bool) -> None:
    with watched_flow(verbose, as_json) as console:
        from flows.calibrate_dtypes import calibrate_dtypes
        from flows.cli.tables import describe_fidelity, print_fidelity
        from miniplm.corpus.reader import load_corpus
        from miniplm.scorers import identify_teacher, require_reference
        from miniplm.scoring.calibration import judge_fidelity
        from miniplm.storage import Storage

        storage, corpus_id = Storage(config.storage), _find_corpus_id(config)
        teacher = identify_teacher(config, emulated=True)
        reference = require_reference(storage, config, load_corpus(storage, corpus_id), emulated=True)
        calibration = calibrate_dtypes(config, corpus_id, teacher, reference, num_sequences)
    if as_json:
        print_json(describe_fidelity(calibration, config))
    else:
        print_fidelity(console, storage, calibration, config)
    judge_fidelity(calibration, config)


@on_a_run
def select(
    asked: Asked,
    ratio: Annotated[
        float | None, typer.Option(help="Kept share of the candidates, in (0, 1]; the same as --set selection.ratio=...")
    ] = None,
) -> None:
    """Keep the sequences with the largest difference score, from the scores that are there; another ratio costs no new scores."""
    config = _begin(asked, *([] if ratio is None else [f"selection.ratio={ratio!r}"]))
    with watched_flow(asked.verbose, asked.as_json) as console:
        from flows.select_sequences import select_sequences
        from miniplm.selection.ranking import load_selection
        from miniplm.storage import Storage

        corpus_id = _find_corpus_id(config)
        teacher, reference = _find_scorer(config, corpus_id, "teacher"), _find_scorer(config, corpus_id, "reference")
        selection_id, _ = select_sequences(config, corpus_id, teacher, reference)
    manifest = load_selection(Storage(config.storage), selection_id)
    if asked.as_json:
        print_json(manifest.as_json())
        return
    from flows.cli.tables import print_selection

    print_selection(console, Storage(config.storage), manifest)


@on_a_run
def train(
    asked: Asked,
    student: Students = None,
) -> None:
    """Train the students on the selection (or on the baseline's data), from their last checkpoints."""
    config = _begin(asked)
    names = _student_names(config, student)
    with watched_flow(asked.verbose, asked.as_json) as console:
        from flows.train_student import train_student

        corpus_id, selection_id = _find_selection_id(config)
        records = {name: train_student(config, corpus_id, selection_id, name)[0] for name in names}
    lines = [
        f"{name}: {record.describe_steps()}, {record.num_tokens:,} tokens, final loss {record.final_loss:.3f} nats a token: {record.folder}"
        for name, record in records.items()
    ]
    _say(console, asked.as_json, {name: record.as_json() for name, record in records.items()}, "\n".join(lines))


@on_a_run
def evaluate(
    asked: Asked,
    student: Students = None,
) -> None:
    """Measure trained students and their milestones on the held-out split, and by zero-shot tasks; compare them with the baseline."""
    config = _begin(asked)
    names = _student_names(config, student)
    with watched_flow(asked.verbose, asked.as_json) as console:
        from flows.evaluate_student import evaluate_student
        from miniplm.corpus.reader import load_corpus
        from miniplm.selection.ranking import load_selection
        from miniplm.storage import Storage
        from miniplm.students import find_student, require_student

        corpus_id, selection_id = _find_selection_id(config)
        root = Storage(config.storage)
        corpus, selection = load_corpus(root, corpus_id), load_selection(root, selection_id)
        records = {
            name: evaluate_student(config, corpus_id, name, require_student(root, config, corpus, selection, name))[0]
            for name in names
        }
    from flows.cli.results import describe_results, print_results
    from miniplm.run_record import RunRecord

    # A baseline that was measured before is compared with, though it was not asked for now.
    found = {
        name: records.get(name) or find_student(root, config, corpus, selection, name) for name in _student_names(config, None)
    }
    everyone = {name: student for name, student in found.items() if student is not None}
    run = RunRecord(run_name=config.name, config=config_as_dict(config), students=everyone, started_at="")
    if asked.as_json:
        print_json(describe_results(root, run, names))
    else:
        print_results(console, root, run)


@on_a_run
def report(asked: Asked) -> None:
    """Write the report of a run again, as far as the run has come."""
    config = _begin(asked)
    from miniplm.run_status import provide_record
    from miniplm.storage import Storage

    provide_record(Storage(config.storage), config)
    with watched_flow(asked.verbose, asked.as_json) as console:
        from flows.write_report import write_report

        url = write_report(config.storage, config.name)
    _say(console, asked.as_json, {"report": url}, f"report: {url}")


def _begin(asked: Asked, *overrides: str, emulated: bool = False) -> RunConfig:
    """The configuration, with its inputs checked as `run` does."""
    config = asked.resolve_config(*overrides)
    from miniplm.inputs import check_inputs

    check_inputs(config, emulated)
    return as_begun(config)


def _find_corpus_id(config: RunConfig) -> str:
    from miniplm.corpus.identity import resolve_corpus_id
    from miniplm.corpus.reader import load_corpus
    from miniplm.storage import Storage

    storage = Storage(config.storage)
    return load_corpus(storage, resolve_corpus_id(storage, config.corpus)).corpus_id


def _find_scorer(config: RunConfig, corpus_id: str, role: Role) -> ModelEntry:
    from miniplm.corpus.reader import load_corpus
    from miniplm.scorers import identify_teacher, require_reference
    from miniplm.storage import Storage

    if role == "teacher":
        return identify_teacher(config)
    storage = Storage(config.storage)
    return require_reference(storage, config, load_corpus(storage, corpus_id))


def _find_selection_id(config: RunConfig) -> tuple[str, str]:
    from miniplm.corpus.reader import load_corpus
    from miniplm.selection.ranking import load_selection, resolve_selection_id
    from miniplm.storage import Storage

    storage = Storage(config.storage)
    corpus = load_corpus(storage, _find_corpus_id(config))
    teacher, reference = _find_scorer(config, corpus.corpus_id, "teacher"), _find_scorer(config, corpus.corpus_id, "reference")
    selection_id = resolve_selection_id(storage, corpus, teacher.model_id, reference.model_id, config.selection)
    return corpus.corpus_id, load_selection(storage, selection_id).selection_id


def _student_names(config: RunConfig, wanted: list[str] | None) -> list[str]:
    known = [student.name for student in config.students]
    unknown = [name for name in wanted or [] if name not in known]
    if unknown:
        raise ConfigError(
            f"run {config.name} has no student {list_offenders(unknown)}; its students are {list_offenders(known) or 'none'}"
        )
    return wanted or known


def _say(console: Console, as_json: bool, facts: object, line: str) -> None:
    if as_json:
        print_json(facts)
    else:
        console.print(line, markup=False, soft_wrap=True)
