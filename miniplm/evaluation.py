"""Measures a model on the held-out split: loss overall and by domain, with the same arithmetic that scores."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from miniplm.artifacts import CorpusManifest, DomainCounts, DomainLoss, Evaluation, ShardEntry
from miniplm.corpus.assembly import add_counts
from miniplm.corpus.reader import read_token_ids
from miniplm.derived.records import DerivedManifest, DerivedShard
from miniplm.errors import CorpusError, ScoreError
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.scoring.engine import Scorer
from miniplm.scoring.throughput import Throughput
from miniplm.storage import Storage
from miniplm.training.data import read_sequences


@dataclass(frozen=True)
class HeldoutText:
    """The held-out split in the tokens that a model reads; by domain its tokens and the UTF-8 bytes of its documents."""

    shards: Sequence[ShardEntry | DerivedShard]
    eos_token_id: int
    domains: dict[str, DomainCounts]


def list_heldout(corpus: CorpusManifest, converted: DerivedManifest | None = None) -> HeldoutText:
    """The split as it was prepared, or as it was `converted` for another tokenizer: the bytes are the documents' all the same.

    Raises `CorpusError` where the split is empty.
    """
    shards, domains = corpus.split_shards("heldout"), corpus.domains.get("heldout", {})
    if not shards:
        raise CorpusError(f"corpus {corpus.corpus_id} has no held-out sequences; give corpus.splits.heldout a larger share")
    if converted is None:
        return HeldoutText(shards, corpus.tokenizer.eos_token_id, domains)
    counts = {
        domain: count.model_copy(update={"num_bytes": domains[domain].num_bytes}) for domain, count in converted.domains.items()
    }
    return HeldoutText(converted.shards, converted.tokenizer.eos_token_id, counts)


def evaluate_heldout(
    storage: Storage,
    corpus: CorpusManifest,
    scorer: Scorer,
    weights_digest: str,
    on_progress: ProgressCallback = ignore_progress,
    converted: DerivedManifest | None = None,
) -> Evaluation:
    """Held-out loss in nats a scored token and in bits a byte, overall and by domain.

        nats_per_token = sum of NLL / scored targets
        bits_per_byte  = nats_per_token / ln 2 * tokens / UTF-8 bytes of the split's documents

    Tokens include each document's EOS. Bits a byte do not depend on the tokenizer, so students of different
    families compare by them. A model with a tokenizer of its own reads the split as it was `converted`. Raises `CorpusError` where the split is empty, `ScoreError` where a loss is not finite.
    """
    started = time.perf_counter()
    heldout = list_heldout(corpus, converted)
    total = sum(shard.num_tokens for shard in heldout.shards)
    nll_sums: dict[str, list[float]] = defaultdict(list)
    num_scored: dict[str, int] = defaultdict(int)
    num_sequences: dict[str, int] = defaultdict(int)
    done = 0

    def on_tokens(num_tokens: int, throughput: Throughput) -> None:
        nonlocal done
        done += num_tokens
        on_progress(Progress(f"evaluate {scorer.model.name}", done, total, "tokens", throughput.describe()))

    for shard in heldout.shards:
        table = read_sequences(storage, shard, ["domain", "token_ids"])
        scores = scorer.score(read_token_ids(table), heldout.eos_token_id, on_tokens)
        for domain, nll_sum, num in zip(
            table["domain"].to_pylist(), scores.nll_sum.tolist(), scores.num_scored_tokens.tolist(), strict=True
        ):
            nll_sums[domain].append(nll_sum)
            num_scored[domain] += num
            num_sequences[domain] += 1

    def loss(domains: list[str], counts: DomainCounts) -> DomainLoss:
        scored = sum(num_scored[domain] for domain in domains)
        nats = math.fsum(value for domain in domains for value in nll_sums[domain]) / max(scored, 1)
        if not math.isfinite(nats):
            raise ScoreError(
                f"model {scorer.model.name} has a held-out loss that is not finite ({', '.join(domains)}); its training went wrong"
            )
        return DomainLoss(
            nats_per_token=nats,
            bits_per_byte=nats / math.log(2) * counts.num_tokens / max(counts.num_bytes, 1),
            num_scored_tokens=scored,
            num_sequences=sum(num_sequences[domain] for domain in domains),
        )

    domains = sorted(num_sequences)
    return Evaluation(
        corpus_id=corpus.corpus_id,
        weights_digest=weights_digest,
        overall=loss(domains, reduce(add_counts, heldout.domains.values(), DomainCounts())),
        domains={domain: loss([domain], heldout.domains[domain]) for domain in domains},
        seconds=time.perf_counter() - started,
    )
