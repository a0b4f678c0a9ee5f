"""The texts that a run's students are measured on: from elsewhere where `evaluation.sources` names some, and the corpus's own held-out split.

Text from elsewhere is a corpus of its own, prepared as any other: named by its content, packed once by the run's tokenizer.
"""

from __future__ import annotations

import logging

from miniplm.config.run import CorpusConfig, SourceConfig, SplitsConfig
from miniplm.corpus.identity import plan_corpus
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


def resolve_text_id(storage: Storage, plan: RunPlan) -> str:
    """The id of the text from elsewhere, prepared or not. Raises `SourceError` where its sources cannot be read."""
    return plan.text_id or plan_corpus(storage, describe_text(plan, plan.evaluation.sources), plan.tokenizer).corpus_id


def describe_text(plan: RunPlan, sources: tuple[SourceConfig, ...]) -> CorpusConfig:
    """Text from elsewhere as a corpus, all of whose documents are in one split."""
    changes = {"sources": sources, "splits": SplitsConfig(reference=0, heldout=0), "extend": False, "truth": None}
    return plan.corpus.model_copy(update=changes)


def prepare_text(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, on_progress: ProgressCallback = ignore_progress
) -> CorpusManifest | None:
    """Packs the text from elsewhere where it is not there yet; None where the run names none.

    Raises what `prepare_corpus` raises, and `CorpusError` where the text is shorter than one sequence, or documents of it are in the corpus
    too, which `evaluation.allow_overlap` allows.
    """
    if not plan.evaluation.sources:
        return None
    config = describe_text(plan, plan.evaluation.sources)
    planned = plan_corpus(storage, config, plan.tokenizer)
    text = prepare_corpus(storage, config, on_progress, planned)
    require_one_sequence(text, "evaluation.sources", "measures nothing; name more text, or leave evaluation.sources out")
    _check_overlap(find_overlap(storage, text.corpus_id, planned.files, plan.corpus, corpus), plan.evaluation.allow_overlap)
    return text


def require_one_sequence(text: CorpusManifest, field: str, otherwise: str) -> None:
    """Raises `CorpusError` where text from elsewhere, which `field` names, is shorter than one sequence."""
    num_tokens = text.split_counts("candidate").num_tokens
    if num_tokens <= text.sequence_length:
        paths = [source.path for source in text.sources]
        raise CorpusError(
            f"{field}: {list_offenders(paths, most=3)} hold {num_tokens:,} tokens, less than one sequence of {text.sequence_length + 1:,} "
            f"(corpus.sequence_length), which {otherwise}"
        )


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
