"""The target text of a run whose teacher is the reference, tuned on that text: a corpus of its own, packed once by the run's tokenizer."""

from __future__ import annotations

from miniplm.config.run import CorpusConfig
from miniplm.corpus.identity import plan_corpus
from miniplm.corpus.preparation import prepare_corpus
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest
from miniplm.run.heldout_texts import describe_text, require_one_sequence
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage


def name_target(storage: Storage, plan: RunPlan) -> RunPlan:
    """The plan with the id of its target text, for those who cannot read the sources: the workers of a pool."""
    if plan.teacher.tuned_on is None:
        return plan
    return plan.model_copy(update={"target_id": resolve_target_id(storage, plan)})


def resolve_target_id(storage: Storage, plan: RunPlan) -> str:
    """The id of the target text, prepared or not. Raises `SourceError` where its sources cannot be read."""
    return plan.target_id or plan_corpus(storage, describe_target(plan), plan.tokenizer).corpus_id


def prepare_target(storage: Storage, plan: RunPlan, on_progress: ProgressCallback = ignore_progress) -> CorpusManifest:
    """Packs the target text where it is not there yet.

    Raises what `prepare_corpus` raises, and `CorpusError` where the text is shorter than one sequence.
    """
    config = describe_target(plan)
    target = prepare_corpus(storage, config, on_progress, plan_corpus(storage, config, plan.tokenizer))
    require_one_sequence(target, "teacher.tuned_on.sources", "teaches nothing; name more text")
    return target


def describe_target(plan: RunPlan) -> CorpusConfig:
    """The target text as a corpus, all of whose documents are in one split."""
    assert plan.teacher.tuned_on is not None
    return describe_text(plan, plan.teacher.tuned_on.sources)
