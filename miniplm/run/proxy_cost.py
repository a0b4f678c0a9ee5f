"""What a proxy leaves to be scored, and how fast it predicts, before a run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from miniplm.config.proxy import ProxyConfig
from miniplm.proxy.cost import count_flops
from miniplm.proxy.labels import FEWEST_LABELS, check_labels, find_labels
from miniplm.proxy.ngrams import count_ngrams
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.run.plan import RunPlan
from miniplm.run.proxies import find_run_proxy
from miniplm.run.token_counts import CorpusCounts
from miniplm.scoring.engine import Scorer
from miniplm.scoring.pooling import pool_states
from miniplm.scoring.shards import check_score_shards
from miniplm.storage.root import Storage

_PROBE_SECONDS = 1.0
_PROBE_SEQUENCES = 8


def count_left_tokens(storage: Storage, counts: CorpusCounts, entry: ModelEntry | None) -> int:
    """Candidate tokens that a model has yet to score; all where it is not there yet."""
    if counts.prepared is None or entry is None:
        return counts.candidate_tokens
    return _count_left(storage, counts.prepared, entry) + counts.new_candidate_tokens


def count_teacher_tokens(storage: Storage, plan: RunPlan, counts: CorpusCounts) -> int:
    """Tokens that the teacher has yet to score: candidates, or those of the labels, a share of what is not prepared or not drawn yet.

    Raises `ProxyError` where a prepared corpus has too few labels.
    """
    config, prepared, teacher = plan.scoring.proxy, counts.prepared, plan.teacher_entry
    if config is None:
        return count_left_tokens(storage, counts, teacher if prepared else None)
    if prepared is None:
        return round(config.share * counts.candidate_tokens)
    check_labels(prepared, config)
    labels = find_labels(storage, prepared, config)
    if labels is None or teacher is None:
        return round(config.share * counts.candidate_tokens)
    return _count_left(storage, labels, teacher) + round(config.share * counts.new_candidate_tokens)


def count_proxy_tokens(storage: Storage, plan: RunPlan, counts: CorpusCounts, reference: ModelEntry | None) -> int:
    """Tokens that the proxy has yet to score; a corpus that grows has all predicted anew."""
    fitted = find_run_proxy(storage, plan, counts.prepared, reference) if counts.prepared else None
    if fitted is None or counts.new_candidate_tokens:
        return counts.candidate_tokens
    return count_left_tokens(storage, counts, fitted.entry)


def _count_left(storage: Storage, corpus: CorpusManifest, entry: ModelEntry) -> int:
    done = {state.shard_index for state in check_score_shards(storage, corpus, entry.model_id) if state.state == "done"}
    return sum(shard.num_tokens for shard in corpus.split_shards("candidate") if shard.shard_index not in done)


def describe_proxy(plan: RunPlan, counts: CorpusCounts, num_teacher_parameters: int, num_reference_parameters: int) -> list[str]:
    """What a run's proxy saves, for people, and a warning where a corpus that is only estimated may have too few labels."""
    config = plan.scoring.proxy
    if config is None:
        return []
    num_tokens, num_label_tokens = counts.candidate_tokens, round(config.share * counts.candidate_tokens)
    flops = count_flops(config.scorer, num_tokens, num_label_tokens, num_teacher_parameters, num_reference_parameters)
    notes = [f"scoring.proxy: {flops.describe()}"]
    num_labels = num_label_tokens // (plan.corpus.sequence_length + 1)
    if counts.prepared is None and num_labels < 1.2 * FEWEST_LABELS:
        notes.append(f"scoring.proxy.share {config.share:g} gives about {num_labels} labels; a proxy needs {FEWEST_LABELS}")
    return notes


def probe_proxy(plan: RunPlan, config: ProxyConfig, reference: Scorer, vocab_size: int, eos_token_id: int) -> float:
    """Tokens a second that a proxy predicts on this machine, of random full-length sequences; nearly all of it is reading features."""
    length = plan.corpus.sequence_length + 1
    rng = np.random.default_rng(0)
    sequences = list(rng.integers(0, min(vocab_size, reference.model.vocab_size), (_PROBE_SEQUENCES, length)))
    read: Callable[[], object] = (
        (lambda: count_ngrams(sequences))
        if config.scorer == "linear"
        else (lambda: pool_states(reference, sequences, eos_token_id))
    )
    read()
    started, passes = time.perf_counter(), 0
    while passes == 0 or time.perf_counter() - started < _PROBE_SECONDS:
        read()
        passes += 1
    return passes * _PROBE_SEQUENCES * length / (time.perf_counter() - started)
