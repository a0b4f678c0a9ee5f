"""Reads a prepared corpus: its manifest, its shards, its tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from miniplm import layout
from miniplm.errors import CorpusError, TokenizerError
from miniplm.records.manifests import CorpusManifest, ShardEntry
from miniplm.records.stored import describe_first_problem
from miniplm.storage.root import Storage, digest_stream
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer

_REPAIR = (
    "Delete that file and run `miniplm prepare CONFIG`: the corpus is made again, with the same content, and the scores stay good"
)


# Manifests that this process has read, by the identity of the file: with thousands of shards they are long.
_manifests: dict[str, CorpusManifest] = {}


def find_corpus(storage: Storage, corpus_id: str) -> CorpusManifest | None:
    """The manifest of a corpus, None where it is not prepared (to its end)."""
    path = layout.corpus_manifest(corpus_id)
    if not storage.exists(path):
        return None
    identity = storage.identify(path)
    if identity in _manifests:
        return _manifests[identity]
    try:
        manifest = CorpusManifest.model_validate(storage.read_json(path))
        if identity:
            _manifests[identity] = manifest
        return manifest
    except ValidationError as error:
        raise CorpusError(
            f"{storage.url(path)} is no corpus manifest ({describe_first_problem(error)}); delete it and run `miniplm prepare CONFIG`"
        ) from error


def open_corpus(root: str, corpus_id: str) -> tuple[Storage, CorpusManifest]:
    """A storage root and a corpus there, for a process that is told both by name. Raises as `load_corpus`."""
    storage = Storage(root)
    return storage, load_corpus(storage, corpus_id)


def load_corpus(storage: Storage, corpus_id: str) -> CorpusManifest:
    """The manifest of a prepared corpus. Raises `CorpusError` where there is none."""
    manifest = find_corpus(storage, corpus_id)
    if manifest is None:
        raise CorpusError(f"corpus {corpus_id} is not prepared at {storage.root}; run `miniplm prepare CONFIG`")
    return manifest


def read_shard(storage: Storage, entry: ShardEntry, columns: Sequence[str] | None = None, verify: bool = True) -> pa.Table:
    """The sequences of a shard, all columns (`shards.make_schema`) or those named, in the order of their ids.

    With `verify` the file's digest is checked first. Raises `CorpusError` where the file is missing or damaged.
    """
    path = layout.corpus_shard(entry.corpus_id, entry.split, entry.shard_index)
    name = f"{layout.shard_name(entry.shard_index)} of the {entry.split} split of corpus {entry.corpus_id}"
    wanted = None if columns is None else list(columns)
    try:
        if not verify:
            with storage.open(path) as file:
                return pq.read_table(file, columns=wanted)
        # One read for digest and content, so that what was verified is what is used.
        content = storage.read_bytes(path)
    except FileNotFoundError:
        raise CorpusError(
            f"{name} is missing: there is no {storage.url(path)}. Run `miniplm prepare CONFIG`: it is made again with the same content"
        ) from None
    except pa.ArrowException as error:
        raise CorpusError(f"{name} is damaged: {storage.url(path)} cannot be read ({error}). {_REPAIR}") from error
    digest = digest_stream(pa.BufferReader(content))
    if digest != entry.digest:
        raise CorpusError(
            f"{name} is damaged: {storage.url(path)} has {len(content):,} bytes with digest {digest}, "
            f"the manifest says {entry.num_bytes:,} with {entry.digest}. {_REPAIR}"
        )
    return pq.read_table(pa.BufferReader(content), columns=wanted)


def read_token_ids(table: pa.Table) -> list[NDArray[Any]]:
    """The `token_ids` of each sequence of a table, (num_tokens,) uint16 or uint32, as views that copy nothing."""
    sequences: list[NDArray[Any]] = []
    for chunk in table.column("token_ids").chunks:
        values: NDArray[Any] = chunk.values.to_numpy(zero_copy_only=True)
        offsets: NDArray[np.int32] = chunk.offsets.to_numpy(zero_copy_only=True)
        bounds = offsets.tolist()
        sequences += [values[start:stop] for start, stop in pairwise(bounds)]
    return sequences


def load_corpus_tokenizer(
    storage: Storage, corpus_id: str, trust_remote_code: bool = False, only_decodes: bool = False
) -> CorpusTokenizer:
    """The tokenizer that a corpus was made with, from its own copy of it; `only_decodes` as in `load_tokenizer`.

    Raises `CorpusError` where the corpus is not prepared or its copy holds another vocabulary.
    """
    recorded = load_corpus(storage, corpus_id).tokenizer
    with tempfile.TemporaryDirectory(prefix="miniplm-") as scratch:
        folder = storage.download(layout.corpus_tokenizer(corpus_id), Path(scratch))
        try:
            loaded = load_tokenizer(str(folder), recorded.eos_token, trust_remote_code, only_decodes=only_decodes)
        except TokenizerError as error:
            raise CorpusError(
                f"the tokenizer of corpus {corpus_id} is damaged: {error}. Run `miniplm prepare CONFIG`: it is written again, and nothing else"
            ) from error
    if (loaded.entry.digest, loaded.eos_token_id) != (recorded.digest, recorded.eos_token_id):
        raise CorpusError(
            f"the tokenizer of corpus {corpus_id} is damaged: {storage.url(layout.corpus_tokenizer(corpus_id))} holds another "
            "vocabulary than its manifest says. Run `miniplm prepare CONFIG`: it is written again, and nothing else"
        )
    return loaded.with_entry(recorded)
