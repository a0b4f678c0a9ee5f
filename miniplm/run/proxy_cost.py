"""What a proxy leaves to be scored, and how fast it predicts, before a run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from miniplm.config.proxy import ProxyConfig
from miniplm.proxy.labels import FEWEST_LABELS, check_labels, find_labels
from miniplm.proxy.ngrams import count_ngrams
from miniplm.records.manifests import CorpusManifest
from miniplm.run.plan import RunPlan
from miniplm.scoring.engine import Scorer
from miniplm.scoring.pooling import pool_states
from miniplm.scoring.shards import check_score_shards
from miniplm.storage.root import Storage

_PROBE_SECONDS = 1.0
_PROBE_SEQUENCES = 8


def count_left_labels(
    storage: Storage, plan: RunPlan, config: ProxyConfig, prepared: CorpusManifest | None, new_tokens: int
) -> int:
    """Tokens that the teacher has yet to score: those of the labels, or a share of what is not prepared yet.

    Raises `ProxyError` where a prepared corpus has too few labels.
    """
    if prepared is None:
        return round(config.share * new_tokens)
    check_labels(prepared, config)
    labels = find_labels(storage, prepared, config)
    if labels is None:
        return round(config.share * (prepared.split_counts("candidate").num_tokens + new_tokens))
    states = check_score_shards(storage, labels, plan.require_teacher().model_id)
    done = {state.shard_index for state in states if state.state == "done"}
    left = sum(shard.num_tokens for shard in labels.split_shards("candidate") if shard.shard_index not in done)
    return left + round(config.share * new_tokens)


def warn_of_few_labels(plan: RunPlan, config: ProxyConfig, num_candidate_tokens: int) -> list[str]:
    """A note where an estimated corpus may have too few labels."""
    num_labels = round(config.share * num_candidate_tokens / (plan.corpus.sequence_length + 1))
    if num_labels >= 1.2 * FEWEST_LABELS:
        return []
    return [f"scoring.proxy.share {config.share:g} gives about {num_labels} labels; a proxy needs {FEWEST_LABELS}"]


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
