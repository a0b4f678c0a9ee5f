"""An export from its first look at the target to its manifest: parts in any order, then all of it read back, then published whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from miniplm.config.exports import SEQUENCE_FORMATS
from miniplm.export.job import ExportJob
from miniplm.export.parts import ExportPlan, plan_parts
from miniplm.export.records import DomainExport, ExportedPart, ExportManifest
from miniplm.export.target import ExportTarget
from miniplm.export.verification import verify_parts
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import is_proxy
from miniplm.versions import list_versions


def export_selection(
    job: ExportJob, resume: bool = False, on_progress: ProgressCallback = ignore_progress
) -> tuple[ExportManifest, bool]:
    """Makes an export; returns its manifest, and whether it was there already, whole.

    A killed one leaves its finished files aside, which `resume` goes on with; the bytes are those of an undisturbed one.
    Raises `ConfigError` where the target holds anything else, `BusyError` where another process exports to it, `StorageError` where
    the disk is full, and `RunFailedError` where what is read back is not what was written: then nothing is published.
    """
    target = ExportTarget(job.config.to)
    if (found := target.find_manifest(job.export_id)) is not None:
        return found, True
    with begin_export(job, target, resume, on_progress) as plan:
        parts = []
        num_done, total = 0, sum(part.num_tokens for part in plan.parts)
        for index, part in enumerate(plan.parts):

            def on_part(progress: Progress, before: int = num_done, name: str = f"file {index + 1} of {len(plan.parts)}") -> None:
                on_progress(Progress(progress.key, before + progress.done, total, progress.unit, name))

            parts.append(job.make_part(target, part, index, len(plan.parts), on_part))
            num_done += part.num_tokens
        return finish_export(job, target, parts, on_progress), False


@contextmanager
def begin_export(
    job: ExportJob, target: ExportTarget, resume: bool, on_progress: ProgressCallback, by_others: bool = False
) -> Iterator[ExportPlan]:
    """Holds the target while the block runs, and says which parts are to be made. Whatever was there already is looked at first.

    `by_others`: other processes make the parts, and may be at it still for an earlier attempt; nothing of theirs is cleared.
    """
    target.check_free(job.export_id, resume)
    with target.claim():
        target.check_free(job.export_id, resume)
        if not by_others:
            target.clear_work()
        plan = target.find_plan()
        if plan is None:
            parts = plan_parts(
                job.storage,
                job.corpus,
                job.selection,
                job.num_shard_tokens,
                job.of_documents,
                on_progress,
                f"plan {job.config.format}",
            )
            plan = ExportPlan(export_id=job.export_id, parts=parts)
            target.save_plan(plan)
        yield plan


def finish_export(
    job: ExportJob, target: ExportTarget, parts: Sequence[ExportedPart], on_progress: ProgressCallback
) -> ExportManifest:
    """Reads all files back and publishes them, the manifest last."""
    first, last = verify_parts(job, target, parts, on_progress)
    manifest = _describe(job, parts, first, last)
    target.publish(parts, job.format.finish(parts, job.facts, manifest), manifest)
    return manifest


def _describe(job: ExportJob, parts: Sequence[ExportedPart], first: str, last: str) -> ExportManifest:
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    files = tuple(file for part in parts for file in part.files)
    holds_text = job.config.holds_text
    return ExportManifest(
        export_id=job.export_id,
        format=job.config.format,
        rows="documents"
        if job.config.format not in SEQUENCE_FORMATS
        else "sequences, packed anew"
        if job.packs_anew
        else "sequences",
        corpus_id=job.corpus.corpus_id,
        selection_id=job.selection.selection_id,
        teacher_id=job.selection.teacher_id,
        reference_id=job.selection.reference_id,
        tokenizer=job.tokenizer,
        token_dtype=None if holds_text else job.facts.dtype,
        bos_token=job.config.bos_token,
        shard_tokens=job.num_shard_tokens,
        num_files=len(files),
        num_rows=sum(part.num_rows for part in parts),
        num_whole=counts.pop("whole", 0),
        num_parts=counts.pop("parts", 0),
        num_tokens=sum(part.num_tokens for part in parts),
        num_eos=sum(part.num_eos for part in parts),
        num_eos_added=counts.pop("eos_added", 0),
        num_source_tokens=sum(part.num_source_tokens for part in parts),
        text_bytes=sum(part.text_bytes for part in parts),
        num_bytes=sum(file.num_bytes for file in files),
        counts=dict(sorted(counts.items())),
        domains=_sum_domains(parts),
        first_row=first,
        last_row=last,
        notes=tuple(_list_notes(job, counts)),
        files=files,
        versions=list_versions(),
    )


def _sum_domains(parts: Sequence[ExportedPart]) -> dict[str, DomainExport]:
    sums: dict[str, list[int]] = {}
    for part in parts:
        for name, domain in part.domains.items():
            tally = sums.setdefault(name, [0, 0])
            tally[0] += domain.num_rows
            tally[1] += domain.num_tokens
    return {name: DomainExport(num_rows=rows, num_tokens=tokens) for name, (rows, tokens) in sorted(sums.items())}


def _list_notes(job: ExportJob, counts: Counter[str]) -> Iterator[str]:
    """What a reader of the files has to know."""
    facts, decodes = job.facts, job.config.holds_text or job.own is not None
    if not job.config.holds_text:
        yield f"token ids are {facts.dtype}, as the vocabulary has {facts.vocab_size:,} ids; EOS is {facts.eos_token_id}"
        if job.packs_anew and job.own is None:
            yield "rows are whole documents packed anew, EOS after each, no BOS; the first and last of a row may be cut"
        elif not job.of_documents:
            yield "rows are the kept sequences as they were scored: documents with EOS between them, no BOS; the first and last may be cut"
        elif job.config.bos_token is None:
            yield "each document is followed by EOS; no BOS"
        else:
            yield f"each document is followed by EOS, and begins with {job.config.bos_token} ({job.bos_token_id})"
    if job.config.loss_mask:
        yield "the loss mask is 1 where a token is a target: not the first of a row, nor what follows an EOS"
    if decodes and (changes := job.source.list_text_changes()):
        yield f"text is what the tokenizer {job.corpus.tokenizer.name} gives back, which is not byte for byte the sources': {'; '.join(changes)}"
    if job.own is not None and (changes := job.own.list_text_changes()):
        yield f"tokenizer {job.own.entry.name} does not hold text byte for byte: {'; '.join(changes)}"
    if counts["ends_without_text"]:
        yield f"{counts['ends_without_text']:,} documents are left out of which only the end, EOS, was kept, and no text"
    if decodes and counts["replaced_bytes"]:
        yield f"U+FFFD stands for {counts['replaced_bytes']:,} bytes of characters whose rest was not kept"
    if counts["unknown_tokens"]:
        yield f"{counts['unknown_tokens']:,} tokens are unknown to the corpus's tokenizer: what they stood for is not known"
    predicted = is_proxy(job.selection.teacher_id)
    if predicted:
        yield (
            f"the difference scores, and with them the teacher's NLLs, are what {job.selection.teacher_id} predicts, but for the share of the sequences that "
            "the teacher scored"
        )
    if job.config.has_scores and predicted:
        yield "scores are those of the documents' sequences: a proxy predicts no other"
    elif job.config.has_scores and job.scored_documents is None and job.selection.unit == "sequence":
        yield "scores are those of the documents' sequences; `miniplm score CONFIG --documents` makes the documents' own"
    if (num_uses := len(job.selection.list_passes())) > 1:
        yield (
            f"the selection uses what it keeps up to {num_uses} times: {job.selection.num_used_tokens:,} tokens are {job.selection.num_selected_tokens:,} "
            "and their repetitions. Each pass has files of its own, after those before, and the ids of its rows end with -use-2 and so on"
        )
    if job.config.format == "nanochat":
        yield "nanochat takes the last file for validation, and trains on the others"
