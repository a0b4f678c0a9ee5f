"""What an interrupted preparation needs to go on: stored as shards are closed, gone when the corpus is complete."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from pydantic import ValidationError

from miniplm import __version__, layout
from miniplm.config.run import EncoderName
from miniplm.corpus.packing import PackerState
from miniplm.records.manifests import DomainCounts, Record, ShardEntry, SourceEntry, Split
from miniplm.storage.root import Storage
from miniplm.tokenizers.gigatoken_encoder import name_version

# A state is stored each time one part in so many of the shards is new.
_SHARE = 256


class StoredPacker(Record):
    """A `PackerState`, its token ids as base64 of little-endian uint32."""

    token_ids: str
    document_ids: tuple[int, ...]
    num_tokens: tuple[int, ...]

    @classmethod
    def pack(cls, state: PackerState) -> StoredPacker:
        token_ids = base64.b64encode(state.token_ids.astype("<u4").tobytes()).decode()
        return cls(token_ids=token_ids, document_ids=state.document_ids, num_tokens=state.num_tokens)

    def unpack(self) -> PackerState:
        token_ids = np.frombuffer(base64.b64decode(self.token_ids), dtype="<u4").astype(np.uint32)
        return PackerState(token_ids, self.document_ids, self.num_tokens)


class SplitState(Record):
    """One split at the start of its open shard.

    The shard starts within document `document_id` (the number of records: after the last one), of which
    `num_emitted` sequences lie in closed shards. `packers` and the documents and bytes of `counts` are as before
    that document; the tokens and sequences of `counts` are those of the closed shards.
    """

    document_id: int
    num_emitted: int
    next_shard_index: int
    packers: dict[str, StoredPacker]
    counts: dict[str, DomainCounts]


class PreparationState(Record):
    """A preparation just after a shard was closed.

    Records below `num_records_checked` are in `rejected`, `rejected_by_file` and in the quarantine files already. `sources` are the
    files that were read to their end. A state is of use only to the same `versions`.
    """

    versions: dict[str, str]
    num_records_checked: int
    rejected: dict[str, int]
    rejected_by_file: dict[str, int]
    num_quarantine_files: int
    sources: tuple[SourceEntry, ...]
    shards: tuple[ShardEntry, ...]
    splits: dict[Split, SplitState]

    @property
    def first_document_id(self) -> int:
        """Where reading goes on: nothing before it is needed by any split."""
        return min(state.document_id for state in self.splits.values())


def read_versions(encoder: EncoderName) -> dict[str, str]:
    """What may make other bytes or token ids in another version."""
    versions = {"miniplm": __version__, **{name: version(name) for name in ("pyarrow", "tokenizers")}}
    # Where it is found to have made other ids, nothing goes on from what it made.
    return versions if encoder == "tokenizers" else {**versions, encoder: name_version()}


def is_state_due(num_shards: int, num_in_state: int) -> bool:
    """Whether the state is to be stored again: after each shard, beyond 256 each time a 256th of the shards is not in it.

    It holds an entry a shard, so that to store it for each would cost the square of their number: 3.4 TB of writes at 150,000
    shards, where this makes 12 GB. A kill costs a 256th of the work at most.
    """
    return num_shards - num_in_state >= max(1, num_shards // _SHARE)


def load_state(storage: Storage, corpus_id: str, versions: dict[str, str]) -> PreparationState | None:
    """The stored state, or None where there is none that this program can go on from with the shards that are there."""
    path = layout.corpus_preparation(corpus_id)
    if not storage.exists(path):
        return None
    content: Any = storage.read_json(path)
    # Other versions of PyArrow or tokenizers may make other bytes or ids, and a corpus is made by one of them from beginning to end.
    if not isinstance(content, dict) or content.get("versions") != versions:
        return None
    try:
        state = PreparationState.model_validate(content)
    except ValidationError:
        return None  # written by another state of the code under the same version
    return state if has_shards(storage, state.shards) else None


def has_shards(storage: Storage, shards: Iterable[ShardEntry]) -> bool:
    """Whether every shard file is there with its recorded size."""
    return next(find_missing_shards(storage, shards), None) is None


def find_missing_shards(storage: Storage, shards: Iterable[ShardEntry]) -> Iterator[ShardEntry]:
    """The shards whose file is not there with its recorded size."""
    for shard in shards:
        path = layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index)
        if not storage.exists(path) or storage.size_bytes(path) != shard.num_bytes:
            yield shard
