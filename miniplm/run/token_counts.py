"""How many tokens a run has before it: counted where its texts are prepared, else estimated from a sample of their files."""

from __future__ import annotations

from dataclasses import dataclass

from miniplm.config.run import CorpusConfig
from miniplm.corpus.identity import CorpusPlan, plan_corpus
from miniplm.corpus.reader import find_corpus
from miniplm.corpus.sampled_work import SampledWork
from miniplm.records.manifests import CorpusManifest
from miniplm.run.outside_texts import describe_target
from miniplm.run.plan import RunPlan
from miniplm.sources.reading import read_source_parts
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import CorpusTokenizer

_SAMPLE_BYTES = 4 << 20
_SAMPLE_FILES = 4


@dataclass(frozen=True)
class CorpusCounts:
    """Tokens of the whole corpus; `prepared` is what is there of it, `new_...` what is yet to be prepared, estimated."""

    candidate_tokens: int
    reference_tokens: int
    total_tokens: int
    num_shards: int
    prepared: CorpusManifest | None
    new_candidate_tokens: int = 0
    new_tokens: int = 0


def count_tokens(storage: Storage, plan: RunPlan, tokenizer: CorpusTokenizer) -> tuple[CorpusCounts, float, list[str]]:
    """What is prepared is counted, the rest estimated: the whole corpus, or the new files of one that grows."""
    planned = plan_corpus(storage, plan.corpus, plan.tokenizer)
    prepared = find_corpus(storage, planned.corpus_id)
    is_whole = prepared is not None
    prepared = prepared or planned.parent
    tokens = {split: prepared.split_counts(split).num_tokens for split in prepared.domains} if prepared else {}
    num_shards = len(prepared.split_shards("candidate")) if prepared else 0
    # The reference stays that of the first corpus.
    reference_tokens = sum(shard.num_tokens for shard in prepared.root_shards("reference")) if prepared else 0
    total, rate, notes = (0, 0.0, []) if is_whole else _estimate_tokens(plan.corpus, planned, tokenizer, plan.prepares_on_workers)
    splits = plan.corpus.splits
    candidates = int(total * (1 - splits.reference - splits.heldout))
    num_sequences = candidates / (plan.corpus.sequence_length + 1)
    num_new_shards = 0 if is_whole else max(1, -(-int(num_sequences) // plan.corpus.sequences_per_shard))
    counts = CorpusCounts(
        candidate_tokens=tokens.get("candidate", 0) + candidates,
        reference_tokens=reference_tokens if prepared else int(total * splits.reference),
        total_tokens=sum(tokens.values()) + total,
        num_shards=num_shards + num_new_shards,
        prepared=prepared,
        new_candidate_tokens=candidates,
        new_tokens=total,
    )
    return counts, rate, notes


def _estimate_tokens(
    config: CorpusConfig, planned: CorpusPlan, tokenizer: CorpusTokenizer, on_workers: bool = False
) -> tuple[int, float, list[str]]:
    """Tokens of all files to be prepared by the tokens a stored byte of a sample, and the tokens a second that this machine prepares."""
    total, notes = 0.0, []
    work = SampledWork(tokenizer, config)
    for source in config.sources:
        files = [file.file for file in planned.files if file.source is source]
        if not files:
            continue
        step = max(1, len(files) // _SAMPLE_FILES)
        num_bytes, num_tokens = 0, 0

        def on_bytes(count: int) -> None:
            nonlocal num_bytes
            num_bytes += count

        for file in files[::step][:_SAMPLE_FILES]:
            left = _SAMPLE_BYTES // _SAMPLE_FILES
            for part in read_source_parts(file, source, 0, 0, on_bytes):
                num_tokens += work.encode(part)
                left -= part.num_bytes
                if left <= 0:
                    break
        source_bytes = sum(file.num_bytes for file in files)
        share = min(1.0, num_bytes / max(1, source_bytes))
        total += num_tokens / max(share, 1e-12)
        if share < 1:
            notes.append(f"{source.path}: tokens estimated from {share:.2%} of {source_bytes / 1e9:.2f} GB")
    if on_workers and total:
        hours = total / work.measure_packing() / 3600
        notes.append(
            "prepare: the hours are those of one machine like this one, which the workers share; the parent packs what they make, which takes "
            f"{f'{hours:.1f} h' if hours >= 0.1 else f'{hours * 3600:.0f} s'} at least"
        )
    return int(total), work.rate(sum(file.content_bytes for file in planned.files)), notes


def count_target_tokens(storage: Storage, plan: RunPlan, tokenizer: CorpusTokenizer) -> int:
    """Tokens of the text that a teacher is tuned on (`teacher.tuned_on`)."""
    config = describe_target(plan)
    planned = plan_corpus(storage, config, plan.tokenizer)
    prepared = find_corpus(storage, planned.corpus_id)
    if prepared is not None:
        return prepared.split_counts("candidate").num_tokens
    return _estimate_tokens(config, planned, tokenizer)[0]
