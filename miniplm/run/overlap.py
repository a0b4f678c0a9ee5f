"""Copies and evaluation texts among what a run kept: which texts are looked for, what that leaves out, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.corpus.reader import load_corpus
from miniplm.errors import EvaluationError, RunError
from miniplm.evaluation.task_texts import read_task_texts
from miniplm.evaluation.tasks import find_harness, find_local_tasks, resolve_tasks
from miniplm.overlap.contamination import provide_contamination, resolve_contamination_id
from miniplm.overlap.copies import find_copies, provide_copies
from miniplm.overlap.evaluation_texts import EvaluationItem, EvaluationSource, heldout_source
from miniplm.overlap.exclusions import plan_exclusions
from miniplm.overlap.summaries import summarise_contamination, summarise_copies
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.overlap import OverlapSummary
from miniplm.records.run import RunRecord
from miniplm.records.selections import SelectionManifest
from miniplm.records.stored import find_record
from miniplm.run.outside_texts import resolve_text_id
from miniplm.run.plan import RunPlan
from miniplm.run.proxies import find_scorer_ids
from miniplm.selection.exclusions import Exclusions
from miniplm.selection.ranking import load_selection, resolve_selection_id
from miniplm.storage.root import Storage, digest_content

# Candidates of so many tokens are looked at without being asked to: some 10 seconds of a core.
MOST_TOKENS_UNASKED = 20_000_000


def list_sources(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> list[EvaluationSource]:
    """All texts that the students of a run are measured on. Nothing is read yet. Raises what `find_local_tasks` raises, and `CorpusError`
    where text from elsewhere is not prepared."""
    trust = plan.corpus.trust_remote_code
    sources = [_task_source(name, plan.evaluation.task_folder) for name in resolve_tasks(plan.evaluation.tasks)]
    if plan.evaluation.sources:
        text = load_corpus(storage, resolve_text_id(storage, plan))
        sources.append(heldout_source("evaluation.sources", storage, text, "candidate", trust))
    if corpus.split_shards("heldout"):
        sources.append(heldout_source("the held-out split", storage, corpus, "heldout", trust))
    return sources


def _task_source(name: str, task_folder: str | None) -> EvaluationSource:
    """A task, named by its files where these are here, else by the harness that fetches it."""
    local = find_local_tasks(task_folder).get(name)
    digest = digest_content([name, find_harness()]) if local is None else local.digest()

    def read() -> Iterator[EvaluationItem]:
        # The harness takes seconds to import.
        from miniplm.evaluation.harness import open_tasks

        with open_tasks([name], task_folder) as load_task:
            yield from read_task_texts(load_task(name))

    return EvaluationSource(f"task {name}", digest, read)


def plan_left_out(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    reference: ModelEntry,
    config: SelectionConfig | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Exclusions:
    """What the run's selection, or another one of it, leaves out by id. Raises as `plan_exclusions` and `list_sources`."""
    return plan_exclusions(
        storage,
        corpus,
        *find_scorer_ids(storage, plan, corpus, reference),
        config or plan.selection,
        lambda: list_sources(storage, plan, corpus),
        plan.corpus.trust_remote_code,
        on_progress,
    )


def name_selection(storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry) -> str:
    """The id of the run's selection. Raises as `resolve_selection_id` and `plan_left_out`."""
    exclusions = plan_left_out(storage, plan, corpus, reference)
    return resolve_selection_id(storage, corpus, *find_scorer_ids(storage, plan, corpus, reference), plan.selection, exclusions)


def find_overlap_summary(storage: Storage, selection_id: str) -> OverlapSummary:
    """What is known of a selection's copies and evaluation texts."""
    found = find_record(storage, layout.selection_overlap(selection_id), OverlapSummary)
    return found or OverlapSummary(selection_id=selection_id)


def measure_copies(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    on_progress: ProgressCallback = ignore_progress,
) -> OverlapSummary:
    """Looks for copies among the candidates, and keeps what it says of the selection beside that."""
    known = find_overlap_summary(storage, selection.selection_id)
    if known.copies is not None and find_copies(storage, corpus) is not None:
        return known
    manifest = provide_copies(storage, corpus, on_progress)
    copies = summarise_copies(storage, corpus, selection, manifest, plan.corpus.trust_remote_code)
    return _keep(storage, known.model_copy(update={"copies": copies}))


def measure_contamination(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    on_progress: ProgressCallback = ignore_progress,
) -> OverlapSummary:
    """Looks for the run's evaluation texts among the candidates, and keeps what it says of the selection beside that.

    Without any text nothing is found. Raises `EvaluationError` where a task cannot be loaded.
    """
    known = find_overlap_summary(storage, selection.selection_id)
    sources = list_sources(storage, plan, corpus)
    if known.contamination is not None and known.contamination.contamination_id == resolve_contamination_id(sources):
        return known
    manifest = provide_contamination(storage, corpus, sources, plan.corpus.trust_remote_code, on_progress)
    return _keep(
        storage, known.model_copy(update={"contamination": summarise_contamination(storage, selection, manifest), "problem": ""})
    )


def measure_unasked(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    on_progress: ProgressCallback = ignore_progress,
) -> None:
    """Looks for both where that takes seconds, so that they are told before anybody trains.

    A task that cannot be loaded is told of beside the selection, and stops no run whose students are trained before it is needed.
    """
    if sum(shard.num_tokens for shard in corpus.split_shards("candidate")) > MOST_TOKENS_UNASKED:
        return
    known = measure_copies(storage, plan, corpus, selection, on_progress)
    tried_id = resolve_contamination_id(list_sources(storage, plan, corpus))
    if known.problem and known.tried_id == tried_id:
        return
    try:
        measure_contamination(storage, plan, corpus, selection, on_progress)
    except EvaluationError as error:
        _keep(storage, known.model_copy(update={"contamination": None, "problem": str(error), "tried_id": tried_id}))


def inspect_overlap(storage: Storage, plan: RunPlan, record: RunRecord, duplicates: bool, contamination: bool) -> OverlapSummary:
    """What is asked for, looked for where it is not known yet. Raises `RunError` where nothing is selected, and as both measures."""
    if record.corpus_id is None or record.selection_id is None:
        raise RunError(f"run {record.run_name!r} has no selection yet; `miniplm run` with its config makes it")
    corpus, selection = load_corpus(storage, record.corpus_id), load_selection(storage, record.selection_id)
    summary = find_overlap_summary(storage, record.selection_id)
    if duplicates:
        summary = measure_copies(storage, plan, corpus, selection)
    if contamination:
        summary = measure_contamination(storage, plan, corpus, selection)
    return summary


def _keep(storage: Storage, summary: OverlapSummary) -> OverlapSummary:
    storage.write_json(layout.selection_overlap(summary.selection_id), summary.as_json())
    return summary
