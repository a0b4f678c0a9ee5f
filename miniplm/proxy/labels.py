"""The labelled sequences: a share of the candidates that the teacher scores, as a corpus of its own, so that all that scores a corpus scores them.

They are drawn by a hash of their ids, over all shards alike: whole shards would be of few sources, as these follow each other. The draw knows
nothing of other sequences, so that a corpus that grows keeps the labels that it has.

Shapes: N sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from miniplm import layout
from miniplm.config.proxy import ProxyConfig
from miniplm.corpus.reader import find_corpus, load_corpus, read_shard
from miniplm.corpus.shards import make_schema, publish_shard
from miniplm.errors import ProxyError
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, DomainCounts, ShardEntry
from miniplm.records.stored import find_record
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage, digest_content
from miniplm.versions import list_versions

# Raised when a change of the code draws other sequences.
LABELS_VERSION = 1
# With fewer the overlap that is measured is worth nothing: its standard error at ratio 0.5 is 6 points with 100.
FEWEST_LABELS = 100

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

# Of splitmix64: an id and its neighbour have nothing in common afterwards.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST_SHIFT = np.uint64(31)


def hash_ids(sequence_ids: Ids, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each id (N,), the same on every machine."""
    with np.errstate(over="ignore"):
        mixed = (sequence_ids.astype(np.uint64) + np.uint64(1)) * _STEP + np.uint64(seed) * _MIXERS[1][1]
        for shift, factor in _MIXERS:
            mixed = (mixed ^ (mixed >> shift)) * factor
        mixed ^= mixed >> _LAST_SHIFT
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def find_labelled(sequence_ids: Ids, share: float, seed: int) -> Mask:
    """Which sequences (N,) are labelled."""
    return hash_ids(sequence_ids, seed) < share


def list_ids(shard: ShardEntry) -> Ids:
    """The ids (N,) of a shard's sequences."""
    return np.arange(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences, dtype=np.int64)


def resolve_labels_id(corpus_id: str, config: ProxyConfig) -> str:
    """The id of the labelled sequences of a corpus."""
    return f"{corpus_id}-labels-{digest_content([LABELS_VERSION, repr(config.share), config.seed])}"


def find_labels(storage: Storage, corpus: CorpusManifest, config: ProxyConfig) -> CorpusManifest | None:
    """The corpus of the labelled sequences; None where they are not all drawn yet."""
    return find_corpus(storage, resolve_labels_id(corpus.corpus_id, config))


def check_labels(corpus: CorpusManifest, config: ProxyConfig) -> None:
    """Raises `ProxyError` where the share gives too few labels; costs no file."""
    num_labels = sum(_count_labelled(shard, config.share, config.seed) for shard in corpus.split_shards("candidate"))
    if num_labels >= FEWEST_LABELS:
        return
    num_candidates = corpus.split_counts("candidate").num_sequences
    enough = 1.2 * FEWEST_LABELS / max(1, num_candidates)
    way_out = f"give a share of {np.ceil(enough * 100) / 100:g} or more" if enough < 1 else "score all of so small a corpus"
    raise ProxyError(
        f"scoring.proxy.share {config.share:g} of {num_candidates:,} candidate sequences gives {num_labels} labels; a proxy needs at least "
        f"{FEWEST_LABELS} to learn from and to be measured by. {way_out[0].upper()}{way_out[1:]}, or leave scoring.proxy out"
    )


@lru_cache(maxsize=65536)
def _count_labelled(shard: ShardEntry, share: float, seed: int) -> int:
    return int(find_labelled(list_ids(shard), share, seed).sum())


@dataclass(frozen=True)
class LabelPlaces:
    """Where the labels of a shard lie: its labelled `rows`, of all (num_sequences,), and the first id that they have as labels."""

    rows: NDArray[np.int64]
    first_label_id: int


def find_places(corpus: CorpusManifest, shard: ShardEntry, share: float, seed: int) -> LabelPlaces:
    """The labels of a candidate shard of a corpus: labels are numbered in the order of the shards and their rows."""
    first = 0
    for other in corpus.split_shards("candidate"):
        if other == shard:
            break
        first += _count_labelled(other, share, seed)
    return LabelPlaces(np.flatnonzero(find_labelled(list_ids(shard), share, seed)), first)


def draw_labels(
    storage: Storage, corpus: CorpusManifest, config: ProxyConfig, on_progress: ProgressCallback = ignore_progress
) -> CorpusManifest:
    """Publishes the labelled sequences of a corpus as `corpora/LABELS_ID`, with ids of their own from 0; what was drawn before is kept.

    Of a corpus that extends another the labels of that are taken as they are, with the scores they have. Raises `ProxyError` where the
    share gives too few labels, and `CorpusError` where a shard is damaged.
    """
    check_labels(corpus, config)
    return _draw(storage, corpus, config, on_progress)


def _draw(storage: Storage, corpus: CorpusManifest, config: ProxyConfig, on_progress: ProgressCallback) -> CorpusManifest:
    if (found := find_labels(storage, corpus, config)) is not None and _has_files(storage, found):
        return found
    earlier: tuple[ShardEntry, ...] = ()
    if corpus.parent is not None:
        earlier = _draw(storage, load_corpus(storage, corpus.parent), config, on_progress).shards
    labels_id = resolve_labels_id(corpus.corpus_id, config)
    with exclusive(storage, layout.corpus_folder(labels_id), f"labels {labels_id}"):
        storage.delete_temporary_files(layout.corpus_folder(labels_id))
        shards = list(earlier)
        groups = _group_shards(corpus, config)
        for number, group in enumerate(groups):
            first_id = sum(shard.num_sequences for shard in shards)
            entry = _find_drawn(storage, labels_id, number)
            if entry is None:
                entry = _draw_group(storage, corpus, config, labels_id, group, number, len(shards), first_id)
            if entry.num_sequences:
                shards.append(entry)
            on_progress(Progress("draw labels", number + 1, len(groups), "shards"))
        counts = DomainCounts(
            num_tokens=sum(shard.num_tokens for shard in shards), num_sequences=sum(shard.num_sequences for shard in shards)
        )
        manifest = CorpusManifest(
            corpus_id=labels_id,
            tokenizer=corpus.tokenizer,
            sequence_length=corpus.sequence_length,
            sources=(),
            num_records=0,
            rejected={},
            domains={"candidate": {"": counts}},
            shards=tuple(shards),
            versions=list_versions(),
        )
        storage.write_json(layout.corpus_manifest(labels_id), manifest.as_json())
    return manifest


def _has_files(storage: Storage, labels: CorpusManifest) -> bool:
    """Whether no shard was deleted; their digests are looked at where they are read, as those of any corpus."""
    return all(storage.exists(layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index)) for shard in labels.shards)


def _group_shards(corpus: CorpusManifest, config: ProxyConfig) -> list[list[ShardEntry]]:
    """The corpus's own shards, neighbours together until their labels are about as many as a shard has: a unit of scoring and retry as others."""
    own = [shard for shard in corpus.split_shards("candidate") if shard.corpus_id == corpus.corpus_id]
    full = max((shard.num_sequences for shard in own), default=1)
    groups: list[list[ShardEntry]] = [[]]
    num_labels = 0
    for shard in own:
        groups[-1].append(shard)
        num_labels += _count_labelled(shard, config.share, config.seed)
        if num_labels >= full:
            groups.append([])
            num_labels = 0
    return [group for group in groups if group]


def _find_drawn(storage: Storage, labels_id: str, number: int) -> ShardEntry | None:
    entry = find_record(storage, layout.label_shard_entry(labels_id, number), ShardEntry)
    if entry is None or not entry.num_sequences:
        return entry
    return entry if storage.holds(layout.corpus_shard(labels_id, "candidate", entry.shard_index), entry.digest) else None


def _draw_group(
    storage: Storage,
    corpus: CorpusManifest,
    config: ProxyConfig,
    labels_id: str,
    group: list[ShardEntry],
    number: int,
    shard_index: int,
    first_id: int,
) -> ShardEntry:
    table = pa.concat_tables(_read_labelled(storage, group, config)).unify_dictionaries().combine_chunks()
    ids = pa.array(np.arange(first_id, first_id + len(table), dtype=np.int64))
    table = table.set_column(0, pa.field("sequence_id", pa.int64(), nullable=False), ids)
    table = table.cast(make_schema(corpus.tokenizer.vocab_size))
    entry = publish_shard(storage, labels_id, "candidate", shard_index, first_id, table)
    storage.write_json(layout.label_shard_entry(labels_id, number), entry.as_json())
    return entry


def _read_labelled(storage: Storage, group: list[ShardEntry], config: ProxyConfig) -> Iterator[pa.Table]:
    for shard in group:
        mask: NDArray[Any] = find_labelled(list_ids(shard), config.share, config.seed)
        yield read_shard(storage, shard).filter(pa.array(mask))
