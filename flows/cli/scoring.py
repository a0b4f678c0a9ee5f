"""The command that has a model score the candidates, or says what its dtype changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.options import Asked, on_a_run, print_json, refuse_beside, watched_flow
from flows.cli.stages import begin, require_corpus, require_reference, say
from miniplm.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from miniplm.records.manifests import CorpusManifest, ModelEntry
    from miniplm.run.plan import RunPlan
    from miniplm.storage.root import Storage

Role = Literal["teacher", "reference", "proxy"]


@on_a_run
def score(
    asked: Asked,
    model: Annotated[
        Role | None,
        typer.Option("--model", help="Which of the two models scores, or the proxy that stands in the teacher's place."),
    ] = None,
    shard: Annotated[
        list[int] | None,
        typer.Option("--shard", min=0, help="Only this shard; may be repeated. Default: all that are missing or broken."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also score shards again whose scores are there and verify.")] = False,
    documents: Annotated[
        bool,
        typer.Option("--documents", help="Also score shards again of which only the scores of documents are missing or damaged."),
    ] = False,
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
        raise ConfigError(
            "give either --model teacher or --model reference (score its shards), or --calibrate N (compare dtypes); --model proxy where scoring.proxy is set"
        )
    if model is None:
        refuse_beside("--calibrate", {"--shard": shard, "--again": again, "--documents": documents})
    storage, plan = begin(asked, emulated=model is None)
    if model is None:
        assert calibrate is not None
        _calibrate(storage, plan, calibrate, asked.as_json, asked.verbose)
        return
    with watched_flow(asked.verbose, asked.as_json) as console:
        from flows.score_corpus import score_corpus

        plan, corpus, entry = _find_work(storage, plan, model)
        stage = score_corpus(plan, corpus.corpus_id, entry, model, shard, again)
        if documents and model != "proxy" and (without := _list_without_documents(storage, plan, corpus, entry, shard)):
            stage = score_corpus(plan, corpus.corpus_id, entry, model, without, again=True)
    say(
        console,
        asked.as_json,
        {"corpus_id": corpus.corpus_id, "model": entry.as_json(), "stage": stage.as_json()},
        f"{stage.num_units:,} tokens of {corpus.corpus_id} are scored by {entry.model_id}"
        + (" (nothing was missing)" if stage.reused else ""),
    )


def _find_work(storage: Storage, plan: RunPlan, model: Role) -> tuple[RunPlan, CorpusManifest, ModelEntry]:
    """The plan with its teacher, what is scored, and by what; a proxy is fitted for it, and refused where it predicts too badly."""
    from miniplm.run import proxies

    plan, corpus = require_corpus(storage, plan)
    if model == "proxy":
        if plan.scoring.proxy is None:
            raise ConfigError(
                "--model proxy: the configuration has no scoring.proxy; give one, e.g. --set scoring.proxy.share=0.05"
            )
        from flows.fit_proxy import fit_proxy

        manifest = fit_proxy(plan, corpus.corpus_id, require_reference(storage, plan, corpus))
        proxies.judge_proxy(storage, manifest, plan)
        return plan, corpus, manifest.entry
    entry = plan.require_teacher() if model == "teacher" else require_reference(storage, plan, corpus)
    _check_gate(storage, plan, corpus, model, entry)
    return plan, proxies.provide_labelled_corpus(storage, plan, corpus) if model == "teacher" else corpus, entry


def _list_without_documents(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, entry: ModelEntry, shards: list[int] | None
) -> list[int]:
    from miniplm.scoring.documents import list_without_documents
    from miniplm.scoring.shards import check_score_shards

    without = list_without_documents(storage, corpus, check_score_shards(storage, corpus, entry.model_id))
    return [index for index in without if not shards or index in shards]


def _check_gate(storage: Storage, plan: RunPlan, corpus: CorpusManifest, model: Role, entry: ModelEntry) -> None:
    """Raises `FidelityError` where a calibration refuses the dtypes, or fp8 has none. Without the other model there is nothing to compare."""
    from miniplm.run.fidelity_gate import check_fidelity
    from miniplm.run.model_entries import find_reference
    from miniplm.selection.fidelity import needs_calibration

    reference = entry if model == "reference" else find_reference(storage, plan, corpus)
    if reference is not None:
        check_fidelity(storage, corpus, plan.require_teacher(), reference, plan)
    elif needs_calibration(entry.dtype, plan.reference.dtype):
        raise ModelError(
            "fp8 scores only once it was compared with float32, by both models, and the reference is not trained yet; "
            "run `miniplm train-reference CONFIG`, then `miniplm score CONFIG --calibrate 1024`"
        )


def _calibrate(storage: Storage, plan: RunPlan, num_sequences: int, as_json: bool, verbose: bool) -> None:
    from miniplm.selection.fidelity import check_measurable

    check_measurable(plan.selection)
    with watched_flow(verbose, as_json) as console:
        from flows.calibrate_dtypes import calibrate_dtypes
        from flows.cli.tables import describe_fidelity, print_fidelity
        from miniplm.run.fidelity_gate import judge_fidelity

        plan, corpus = require_corpus(storage, plan)
        reference = require_reference(storage, plan, corpus)
        calibration = calibrate_dtypes(plan, corpus.corpus_id, plan.require_teacher(), reference, num_sequences)
    if as_json:
        print_json(describe_fidelity(storage, calibration, plan, corpus))
    else:
        print_fidelity(console, storage, calibration, plan, corpus)
    judge_fidelity(storage, corpus, calibration, plan)
