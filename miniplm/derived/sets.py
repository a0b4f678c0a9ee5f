"""Makes a derived set: shard after shard, each published whole and then its manifest, then the set's manifest.

What a set is made of and named by is its job's; a shard depends on its sources and on the recipe alone. So whatever made
its shards, however often it was killed, the bytes are the same, and whoever asks for the same recipe finds them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from miniplm import layout
from miniplm.corpus.assembly import add_counts
from miniplm.corpus.shards import OpenShard
from miniplm.derived.reader import find_derived
from miniplm.derived.recipes import ConversionRecipe, DerivedManifest, DerivedShard, DocumentsRecipe, GenerationRecipe, SourcePart
from miniplm.derived.sequences import TrainingShard
from miniplm.errors import DamagedFileError, DerivedError, first_line
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import DomainCounts, TokenizerEntry
from miniplm.records.stored import ShardState, check_all, read_record
from miniplm.storage.root import Storage, digest_file
from miniplm.versions import list_versions


@dataclass(frozen=True)
class DerivedSource:
    """The sequences that one derived shard is made of, in order."""

    parts: tuple[TrainingShard, ...]

    @property
    def num_sequences(self) -> int:
        return sum(part.num_sequences for part in self.parts)

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.parts)

    def describe(self) -> tuple[SourcePart, ...]:
        """Which files and rows these are, by content."""
        return tuple(
            SourcePart(shard_digest=part.entry.digest, rows_digest=_digest_rows(list_rows(part)), num_sequences=part.num_sequences)
            for part in self.parts
        )


@dataclass(frozen=True)
class MadeShard:
    """A derived shard in memory. Its sequences' ids are `first_sequence_id`, +1, ...; `domains` and `counts` are its manifest's."""

    sequences: OpenShard
    first_sequence_id: int
    domains: Mapping[str, DomainCounts]
    counts: Mapping[str, int]


class ShardMaker(ABC):
    """What makes the shards of one set: models and tokenizers loaded, for one shard after another."""

    @abstractmethod
    def make_shard(self, shard_index: int, on_progress: ProgressCallback) -> MadeShard:
        """The shard, a function of the recipe and its sources alone; the progress counts the source's `unit` from 0."""


class DerivedJob(ABC):
    """A set that can be made: its recipe, known from content before anything of it exists, and where its parts are found."""

    name: str
    unit: Literal["tokens", "sequences"]
    # Whether a text runs on from a sequence into the next of its domain, as in a corpus.
    runs_on = False

    @property
    @abstractmethod
    def recipe(self) -> ConversionRecipe | GenerationRecipe | DocumentsRecipe:
        """What names the set."""

    @property
    @abstractmethod
    def tokenizer(self) -> TokenizerEntry:
        """The tokenizer that the set's token ids are of."""

    @property
    def derived_id(self) -> str:
        return self.recipe.derived_id

    @abstractmethod
    def list_sources(self, storage: Storage) -> list[DerivedSource]:
        """What each derived shard is made of, in the order of their index."""

    @abstractmethod
    def open_maker(self, storage: Storage, sources: Sequence[DerivedSource], device: str) -> ShardMaker:
        """Loads what makes the shards; `device` computes where a model is needed."""

    @abstractmethod
    def publish_tokenizer(self, storage: Storage) -> None:
        """Writes the copy of the tokenizer, where the set has one that is not there whole."""

    def count_units(self, source: DerivedSource) -> int:
        return source.num_tokens if self.unit == "tokens" else source.num_sequences


def check_shard(storage: Storage, derived_id: str, shard_index: int, source: DerivedSource | None) -> ShardState[DerivedShard]:
    """Reads a shard's manifest and its file's digest, and says whether the shard is made, of this source where one is given."""
    state = partial(ShardState[DerivedShard], shard_index)
    try:
        manifest = read_record(storage, layout.derived_shard_manifest(derived_id, shard_index), DerivedShard)
    except FileNotFoundError:
        return state("missing")
    except DamagedFileError as error:
        return state("broken", reason=f"its manifest is damaged ({first_line(error)})")
    if (manifest.derived_id, manifest.shard_index) != (derived_id, shard_index):
        return state("broken", reason=f"its manifest is of {manifest.title}")
    if source is not None and manifest.sources != source.describe():
        return state("broken", reason="it was made of other sequences than it is to be made of")
    path = layout.derived_shard(derived_id, shard_index)
    if not storage.holds(path, manifest.digest):
        is_there = storage.exists(path)
        return state("broken", reason=f"its file is {'not what its manifest says (digests differ)' if is_there else 'gone'}")
    return state("done", manifest)


def check_shards(storage: Storage, derived_id: str, sources: Sequence[DerivedSource]) -> list[ShardState[DerivedShard]]:
    """The state of every shard of a set, in the order of their index."""
    return check_all(storage, lambda pair: check_shard(storage, derived_id, *pair), enumerate(sources))


def make_shard(
    storage: Storage,
    job: DerivedJob,
    maker: ShardMaker,
    shard_index: int,
    source: DerivedSource,
    on_progress: ProgressCallback = ignore_progress,
) -> DerivedShard:
    """Makes one shard and publishes `derived/DERIVED_ID/shard-N.parquet`, then its manifest; one that is done is left as it is."""
    state = check_shard(storage, job.derived_id, shard_index, source)
    if state.manifest is not None:
        return state.manifest
    made = maker.make_shard(shard_index, on_progress)
    manifest_path = layout.derived_shard_manifest(job.derived_id, shard_index)
    # A manifest that spoke of an older file must be gone before a new file stands in its place.
    storage.delete(manifest_path)
    with storage.publish(layout.derived_shard(job.derived_id, shard_index)) as path:
        made.sequences.write(path, made.first_sequence_id)
        digest, num_bytes = digest_file(path), path.stat().st_size
    manifest = DerivedShard(
        derived_id=job.derived_id,
        shard_index=shard_index,
        sources=source.describe(),
        digest=digest,
        num_bytes=num_bytes,
        num_sequences=len(made.sequences),
        num_tokens=made.sequences.num_tokens,
        domains=dict(sorted(made.domains.items())),
        counts=dict(made.counts),
        versions=list_versions(),
    )
    # Last: killed before it, the file is there and the shard is not made; it is written again with the same bytes.
    storage.write_json(manifest_path, manifest.as_json())
    return manifest


def finish_set(storage: Storage, job: DerivedJob, shards: Sequence[DerivedShard]) -> DerivedManifest:
    """Publishes the tokenizer and the set's manifest, once all shards are there."""
    job.publish_tokenizer(storage)
    counts: dict[str, int] = {}
    for shard in shards:
        for key, count in shard.counts.items():
            counts[key] = counts.get(key, 0) + count
    manifest = DerivedManifest(
        derived_id=job.derived_id,
        recipe=job.recipe.as_json(),
        tokenizer=job.tokenizer,
        sequence_length=job.recipe.sequence_length,
        shards=tuple(shards),
        domains=sum_domains(shard.domains for shard in shards),
        counts=counts,
        versions=list_versions(),
    )
    found = find_derived(storage, job.derived_id)
    # Another run may know the same tokenizer by another path; what is there stays as it is.
    if found is not None and found.shards == manifest.shards:
        return found
    storage.write_json(layout.derived_manifest(job.derived_id), manifest.as_json())
    return manifest


def make_set(
    storage: Storage, job: DerivedJob, device: str = "auto", on_progress: ProgressCallback = ignore_progress
) -> DerivedManifest:
    """The whole set; only what is missing or broken of it is made, one shard after another.

    Raises `DerivedError` where there is nothing to make it of.
    """
    sources = require_sources(storage, job)
    states = check_shards(storage, job.derived_id, sources)
    manifests = {state.shard_index: state.manifest for state in states if state.manifest is not None}
    # A set that is whole needs neither teacher nor tokenizer, which may be gone by now.
    if len(manifests) < len(sources):
        # There is no lock: another process may be making shards of this set now, but takes no hour to write one.
        storage.delete_temporary_files(layout.derived_folder(job.derived_id), older_than_seconds=3600.0)
        maker = job.open_maker(storage, sources, device)
        for index, source in enumerate(sources):
            if index not in manifests:
                manifests[index] = make_shard(storage, job, maker, index, source, on_progress)
    return finish_set(storage, job, [manifests[index] for index in range(len(sources))])


def require_sources(storage: Storage, job: DerivedJob) -> list[DerivedSource]:
    """What each shard of a set is made of; `DerivedError` where that is nothing."""
    sources = job.list_sources(storage)
    if not sources:
        raise DerivedError(f"{job.name}: there is no sequence to derive others from; use a larger selection.ratio or corpus")
    return sources


def list_derived_shards(manifest: DerivedManifest) -> list[TrainingShard]:
    """All sequences of a derived set, to train on or to derive others from."""
    return [TrainingShard(shard, shard.num_sequences, shard.num_tokens) for shard in manifest.shards]


def list_rows(part: TrainingShard) -> NDArray[np.int64]:
    """The chosen rows of a shard, (num_chosen,) ascending."""
    return np.arange(part.entry.num_sequences, dtype=np.int64) if part.load_rows is None else part.load_rows()


def sum_domains(several: Iterable[Mapping[str, DomainCounts]]) -> dict[str, DomainCounts]:
    """The sums of several counts by domain, by name."""
    total: dict[str, DomainCounts] = {}
    for domains in several:
        for name, counts in domains.items():
            total[name] = add_counts(total.get(name, DomainCounts()), counts)
    return dict(sorted(total.items()))


def _digest_rows(rows: NDArray[np.int64]) -> str:
    """Of row numbers (num_chosen,), as the same bytes on any machine."""
    return f"sha256:{hashlib.sha256(np.ascontiguousarray(rows, dtype='<i8').tobytes()).hexdigest()}"
