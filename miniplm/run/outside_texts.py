"""The texts of a run beside its corpus: what its students are measured on (`evaluation.sources`), what its teacher is tuned on (`teacher.tuned_on`).

Text from elsewhere is a corpus of its own, prepared as any other: named by its content, packed once by the run's tokenizer.
"""

from __future__ import annotations

import logging

from miniplm.config.run import CorpusConfig, SourceConfig, SplitsConfig
from miniplm.corpus.identity import CorpusPlan, plan_corpus
from miniplm.corpus.overlap import find_overlap
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import find_corpus, load_corpus
from miniplm.errors import CorpusError, list_offenders
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest
from miniplm.records.texts import MeasuredText, OverlapRecord
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage

_log = logging.getLogger("miniplm")


def list_texts(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> list[MeasuredText]:
    """What is measured, the text that comparisons, curves and fits are of first."""
    texts = []
    if plan.evaluation.sources:
        texts.append(MeasuredText(corpus_id=resolve_text_id(storage, plan), split="candidate"))
    if plan.evaluation.heldout or not texts:
        texts.append(MeasuredText(corpus_id=corpus.corpus_id))
    return texts


def load_text(storage: Storage, text: MeasuredText, corpus: CorpusManifest) -> CorpusManifest:
    """The corpus that a text is of. Raises `CorpusError` where text from elsewhere is not prepared yet."""
    return corpus if text.elsewhere is None else load_corpus(storage, text.corpus_id)


def find_text(storage: Storage, text: MeasuredText, corpus: CorpusManifest) -> CorpusManifest | None:
    """As `load_text`; None where it is not prepared yet."""
    return corpus if text.elsewhere is None else find_corpus(storage, text.corpus_id)


def name_text(storage: Storage, plan: RunPlan) -> RunPlan:
    """The plan with the id of its text from elsewhere, for those who cannot read the sources: the workers of a pool."""
    return plan.model_copy(update={"text_id": resolve_text_id(storage, plan)}) if plan.evaluation.sources else plan


def name_target(storage: Storage, plan: RunPlan) -> RunPlan:
    """The plan with the id of its target text, for the workers of a pool too."""
    return plan if plan.teacher.tuned_on is None else plan.model_copy(update={"target_id": resolve_target_id(storage, plan)})


def resolve_text_id(storage: Storage, plan: RunPlan) -> str:
    """The id of the held-out text from elsewhere, prepared or not. Raises `SourceError` where its sources cannot be read."""
    return plan.text_id or plan_corpus(storage, _describe(plan, plan.evaluation.sources), plan.tokenizer).corpus_id


def resolve_target_id(storage: Storage, plan: RunPlan) -> str:
    """The id of the target text, as `resolve_text_id`."""
    return plan.target_id or plan_corpus(storage, describe_target(plan), plan.tokenizer).corpus_id


def describe_target(plan: RunPlan) -> CorpusConfig:
    """The target text as a corpus."""
    assert plan.teacher.tuned_on is not None
    return _describe(plan, plan.teacher.tuned_on.sources)


def _describe(plan: RunPlan, sources: tuple[SourceConfig, ...]) -> CorpusConfig:
    """Text from elsewhere as a corpus, all of whose documents are in one split."""
    changes = {"sources": sources, "splits": SplitsConfig(reference=0, heldout=0), "extend": False, "truth": None}
    return plan.corpus.model_copy(update=changes)


def prepare_text(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, on_progress: ProgressCallback = ignore_progress
) -> CorpusManifest | None:
    """Packs the held-out text from elsewhere where it is not there yet; None where the run names none.

    Raises what `prepare_corpus` raises, and `CorpusError` where the text is shorter than one sequence, or documents of it are in the corpus
    too, which `evaluation.allow_overlap` allows.
    """
    if not plan.evaluation.sources:
        return None
    planned = plan_corpus(storage, _describe(plan, plan.evaluation.sources), plan.tokenizer)
    otherwise = "measures nothing; name more text, or leave evaluation.sources out"
    text = _prepare(storage, planned, "evaluation.sources", otherwise, on_progress)
    _check_overlap(find_overlap(storage, text.corpus_id, planned.files, plan.corpus, corpus), plan.evaluation.allow_overlap)
    return text


def prepare_target(storage: Storage, plan: RunPlan, on_progress: ProgressCallback = ignore_progress) -> CorpusManifest:
    """Packs the target text where it is not there yet.

    Raises what `prepare_corpus` raises, and `CorpusError` where the text is shorter than one sequence.
    """
    planned = plan_corpus(storage, describe_target(plan), plan.tokenizer)
    return _prepare(storage, planned, "teacher.tuned_on.sources", "teaches nothing; name more text", on_progress)


def _prepare(storage: Storage, planned: CorpusPlan, field: str, otherwise: str, on_progress: ProgressCallback) -> CorpusManifest:
    """The text as a corpus. Raises `CorpusError` where text from elsewhere, which `field` names, is shorter than one sequence."""
    text = prepare_corpus(storage, planned.config, on_progress, planned)
    num_tokens = text.split_counts("candidate").num_tokens
    if num_tokens <= text.sequence_length:
        paths = [source.path for source in text.sources]
        raise CorpusError(
            f"{field}: {list_offenders(paths, most=3)} hold {num_tokens:,} tokens, less than one sequence of {text.sequence_length + 1:,} "
            f"(corpus.sequence_length), which {otherwise}"
        )
    return text


def _check_overlap(overlap: list[OverlapRecord], is_allowed: bool) -> None:
    told = describe_overlap(overlap)
    if told is None:
        return
    if is_allowed or not any(record.shared for record in overlap):
        _log.warning(f"evaluation.sources: {told}")
        return
    raise CorpusError(
        f"evaluation.sources: {told}. What a model was trained on does not tell how it does on other text: take these documents out of one of the "
        "two, or set evaluation.allow_overlap=true to measure on them all the same"
    )


def describe_overlap(overlap: list[OverlapRecord]) -> str | None:
    """How many texts are in the corpus too, and which files of it could not be looked at; None where there are neither."""
    splits = {digest: split for record in overlap for digest, split in record.shared.items()}
    parts = []
    if splits:
        counts = ", ".join(f"{list(splits.values()).count(split):,} {split}" for split in sorted(set(splits.values())))
        first = next(record.first for record in overlap if record.shared)
        parts.append(
            f"{len(splits):,} of {overlap[0].num_texts:,} different documents are in the corpus too ({counts}), first {first}"
        )
    gone = [path for record in overlap for path in record.gone_files]
    if gone:
        parts.append(f"not compared with what the corpus took from files that are not there any more: {list_offenders(gone)}")
    return "; ".join(parts) or None
