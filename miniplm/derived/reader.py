"""Reads derived sets: the manifest, the shards, the tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.derived.recipes import DerivedManifest, DerivedShard
from miniplm.errors import DerivedError, TokenizerError
from miniplm.records.stored import find_record
from miniplm.storage.root import Storage, digest_stream
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer

_REPAIR = "Run `miniplm train CONFIG`: what is missing is made again with the same content, and nothing else"


def find_derived(storage: Storage, derived_id: str) -> DerivedManifest | None:
    """The manifest of a derived set, None where it is not made (to its end) or its manifest is damaged."""
    manifest = find_record(storage, layout.derived_manifest(derived_id), DerivedManifest)
    return manifest if manifest is not None and manifest.derived_id == derived_id else None


def load_derived(storage: Storage, derived_id: str) -> DerivedManifest:
    """The manifest of a derived set. Raises `DerivedError` where it is not made."""
    manifest = find_derived(storage, derived_id)
    if manifest is None:
        raise DerivedError(
            f"the derived set {derived_id} is not complete at {storage.url(layout.derived_folder(derived_id))}. {_REPAIR}"
        )
    return manifest


def read_derived_shard(storage: Storage, shard: DerivedShard, columns: Sequence[str] | None = None) -> pa.Table:
    """The sequences of a shard, all columns (`corpus.shards.make_schema`) or those named; its digest is checked first.

    Raises `DerivedError` where the file is missing or damaged.
    """
    relative = layout.derived_shard(shard.derived_id, shard.shard_index)
    try:
        # One read for digest and content, so that what was verified is what is used.
        content = storage.read_bytes(relative)
    except FileNotFoundError:
        raise DerivedError(f"{shard.title} is missing: there is no {storage.url(relative)}. {_REPAIR}") from None
    digest = digest_stream(pa.BufferReader(content))
    if digest != shard.digest:
        raise DerivedError(
            f"{shard.title} is damaged: {storage.url(relative)} has {len(content):,} bytes with digest {digest}, its manifest says "
            f"{shard.num_bytes:,} with {shard.digest}. {_REPAIR}"
        )
    return pq.read_table(pa.BufferReader(content), columns=None if columns is None else list(columns))


def load_derived_tokenizer(storage: Storage, derived_id: str, trust_remote_code: bool = False) -> CorpusTokenizer:
    """The tokenizer of a converted set, from the copy beside its shards.

    Raises `DerivedError` where the set is not made, or its copy is damaged or of another vocabulary.
    """
    recorded = load_derived(storage, derived_id).tokenizer
    relative = layout.derived_tokenizer(derived_id)
    with tempfile.TemporaryDirectory(prefix="miniplm-") as scratch:
        folder = storage.download(relative, Path(scratch))
        try:
            loaded = load_tokenizer(str(folder), recorded.eos_token, trust_remote_code)
        except TokenizerError as error:
            raise DerivedError(f"the tokenizer of derived set {derived_id} is damaged: {error}. {_REPAIR}") from error
    if (loaded.entry.digest, loaded.eos_token_id) != (recorded.digest, recorded.eos_token_id):
        raise DerivedError(
            f"the tokenizer of derived set {derived_id} is damaged: {storage.url(relative)} holds another vocabulary than its "
            f"manifest says. Delete that folder; {_REPAIR[0].lower()}{_REPAIR[1:]}"
        )
    return loaded.with_entry(recorded)
