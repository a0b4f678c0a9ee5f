"""Measures a model on held-out text: loss overall and by domain, with the same arithmetic that scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from miniplm.corpus.reader import read_token_ids
from miniplm.derived.recipes import DerivedManifest, DerivedShard
from miniplm.derived.sequences import read_sequences
from miniplm.errors import CorpusError, ScoreError
from miniplm.evaluation.losses import SequenceLosses
from miniplm.models.throughput import Throughput
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, DomainCounts, DomainLoss, Evaluation, ShardEntry, Split
from miniplm.records.texts import MeasuredText
from miniplm.scoring.engine import Scorer
from miniplm.storage.root import Storage

_COLUMNS = ("sequence_id", "domain", "document_ids", "token_ids")


@dataclass(frozen=True)
class HeldoutText:
    """The text that models are measured on, in the tokens of one tokenizer.

    `domains` counts the documents, with the UTF-8 bytes of their texts and the tokens these became; `read_tables`
    gives columns of the sequences, shard by shard, of a corpus' columns.
    """

    text: MeasuredText
    eos_token_id: int
    domains: Mapping[str, DomainCounts]
    read_tables: Callable[[Sequence[str]], Iterator[pa.Table]]

    @property
    def num_tokens(self) -> int:
        return sum(counts.num_tokens for counts in self.domains.values())


def find_heldout(
    storage: Storage, corpus: CorpusManifest, converted: DerivedManifest | None = None, split: Split = "heldout"
) -> HeldoutText:
    """The held-out split as it was prepared, or as it was `converted` for another tokenizer; bytes are those of the documents in both.

    Split `candidate`: all of a corpus that was made of text from elsewhere. Raises `CorpusError` where it is empty.
    """
    if not corpus.split_shards(split):
        raise CorpusError(f"corpus {corpus.corpus_id} has no held-out sequences; give corpus.splits.heldout a larger share")
    shards: Sequence[ShardEntry | DerivedShard] = corpus.split_shards(split)
    eos_token_id, domains = corpus.tokenizer.eos_token_id, corpus.domains[split]
    if converted is not None:
        shards, eos_token_id = converted.shards, converted.tokenizer.eos_token_id
        domains = {
            domain: counts.model_copy(update={"num_bytes": domains[domain].num_bytes})
            for domain, counts in converted.domains.items()
        }

    def read_tables(columns: Sequence[str]) -> Iterator[pa.Table]:
        for shard in shards:
            yield read_sequences(storage, shard, columns)

    return HeldoutText(MeasuredText(corpus_id=corpus.corpus_id, split=split), eos_token_id, domains, read_tables)


def evaluate_heldout(
    text: HeldoutText, scorer: Scorer, weights_digest: str, on_progress: ProgressCallback = ignore_progress
) -> tuple[Evaluation, SequenceLosses]:
    """Held-out loss in nats a scored token and in bits a byte, overall and by domain; and the loss of each sequence.

        nats_per_token = sum of NLL / scored targets
        bits_per_byte  = nats_per_token / ln 2 * tokens / UTF-8 bytes of the split's documents

    Tokens include each document's EOS. Bits a byte do not depend on the tokenizer, so students of different
    families compare by them. Standard errors are over documents (`ratio_standard_error`). Raises `ScoreError` where a
    loss is not finite.
    """
    started = time.perf_counter()
    done = 0

    def on_tokens(num_tokens: int, throughput: Throughput) -> None:
        nonlocal done
        done += num_tokens
        on_progress(Progress(f"evaluate {scorer.model.name}", done, text.num_tokens, "tokens", throughput.describe()))

    parts = []
    for table in text.read_tables(_COLUMNS):
        scores = scorer.score(read_token_ids(table), text.eos_token_id, on_tokens)
        parts.append(
            SequenceLosses(
                sequence_id=table["sequence_id"].to_numpy(),
                domain=np.array(table["domain"].to_pylist(), dtype=np.str_),
                document_id=_first_of_each(table["document_ids"]),
                num_scored_tokens=scores.num_scored_tokens.astype(np.int64),
                nll_sum=scores.nll_sum,
            )
        )
    losses = _join(parts)

    def measure(measured: SequenceLosses, domains: Sequence[str]) -> DomainLoss:
        scored = int(measured.num_scored_tokens.sum())
        # Exactly rounded, so that a domain's loss does not depend on the order of its sequences.
        nats = math.fsum(measured.nll_sum.tolist()) / max(scored, 1)
        if not math.isfinite(nats):
            raise ScoreError(
                f"model {scorer.model.name} has a held-out loss that is not finite ({', '.join(domains)}); its training went wrong"
            )
        num_tokens = sum(text.domains[domain].num_tokens for domain in domains)
        num_bytes = sum(text.domains[domain].num_bytes for domain in domains)
        return DomainLoss(
            nats_per_token=nats,
            bits_per_byte=nats / math.log(2) * num_tokens / max(num_bytes, 1),
            num_scored_tokens=scored,
            num_sequences=len(measured.sequence_id),
            nats_standard_error=measured.standard_error(),
        )

    domains = sorted(set(losses.domain.tolist()))
    evaluation = Evaluation(
        corpus_id=text.text.corpus_id,
        split=text.text.split,
        weights_digest=weights_digest,
        overall=measure(losses, sorted(text.domains)),
        domains={domain: measure(losses.of_domain(domain), [domain]) for domain in domains},
        seconds=time.perf_counter() - started,
    )
    return evaluation, losses


def _first_of_each(lists: pa.ChunkedArray) -> NDArray[np.int64]:
    """The first value of each list of int64, none of which is empty: (num_lists,)."""
    column = lists.combine_chunks()
    starts = np.asarray(column.offsets)[:-1]
    first: NDArray[np.int64] = np.asarray(column.values)[starts]
    return first


def _join(parts: list[SequenceLosses]) -> SequenceLosses:
    def column(name: str) -> NDArray[Any]:  # (num_sequences,)
        return np.concatenate([getattr(part, name) for part in parts])

    return SequenceLosses(
        column("sequence_id"), column("domain"), column("document_id"), column("num_scored_tokens"), column("nll_sum")
    )
