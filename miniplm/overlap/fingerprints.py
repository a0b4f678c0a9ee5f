"""What copies are found by, of each document of a candidate shard: a digest of its tokens and its MinHash signature. Made once a shard.

It is of the corpus alone, so every selection of it, and every corpus that extends it, finds it there. A document at the border of a shard
may lie in the next one too: its tokens are kept in place of both, and it is put together where copies are looked for (`copies`).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from miniplm import layout
from miniplm.overlap.documents import ShardDocuments, read_documents
from miniplm.records.manifests import CorpusManifest, ShardEntry
from miniplm.records.overlap import FingerprintEntry
from miniplm.records.stored import find_record
from miniplm.selection.minhash import NUM_PERMUTATIONS, SIGNATURE_VERSION, sign
from miniplm.storage.root import Storage
from miniplm.storage.tables import publish_table

# Raised whenever the same tokens would get another fingerprint; the version of the signatures is looked at too.
FINGERPRINT_VERSION = f"1-{SIGNATURE_VERSION}"
# Their shingles take 8 bytes each, some copies of them at a time.
_BLOCK_TOKENS = 1 << 20

SCHEMA = pa.schema(
    [
        ("document_id", pa.int64()),
        ("num_tokens", pa.int64()),
        ("digest", pa.binary(16)),
        ("signature", pa.binary(NUM_PERMUTATIONS)),
        ("sequence_ids", pa.list_(pa.int64())),
        ("part_tokens", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.uint32())),
    ]
)


def find_fingerprints(storage: Storage, shard: ShardEntry) -> FingerprintEntry | None:
    """What is known of a shard's documents; None where they were not looked at, or it is of another file or version."""
    entry = find_record(storage, layout.fingerprint_manifest(shard.corpus_id, shard.shard_index), FingerprintEntry)
    if entry is None or entry.version != FINGERPRINT_VERSION or entry.shard_digest != shard.digest:
        return None
    return entry if storage.holds(layout.fingerprint_shard(shard.corpus_id, shard.shard_index), entry.digest) else None


def provide_fingerprints(storage: Storage, corpus: CorpusManifest, shard: ShardEntry) -> FingerprintEntry:
    """Finds or makes the fingerprints of a candidate shard: a row a document, of its tokens in this shard. Raises `CorpusError` where it is damaged."""
    found = find_fingerprints(storage, shard)
    if found is not None:
        return found
    documents = read_documents(storage, corpus, shard)
    file = layout.fingerprint_shard(shard.corpus_id, shard.shard_index)
    digest, num_bytes = publish_table(storage, file, _make_table(documents), compression="zstd")
    entry = FingerprintEntry(
        version=FINGERPRINT_VERSION,
        shard_digest=shard.digest,
        digest=digest,
        num_bytes=num_bytes,
        num_documents=len(documents.document_ids),
    )
    storage.write_json(layout.fingerprint_manifest(shard.corpus_id, shard.shard_index), entry.as_json())
    return entry


def digest_tokens(token_ids: NDArray[Any]) -> bytes:
    """16 bytes that two documents share where they have the same token ids (num_tokens,)."""
    return hashlib.blake2b(token_ids.astype("<u4").tobytes(), digest_size=16).digest()


def _make_table(documents: ShardDocuments) -> pa.Table:
    bounds, is_open = documents.bounds, documents.is_open
    digests: list[bytes | None] = []
    signatures: list[bytes | None] = []
    tokens: list[NDArray[Any] | None] = []
    start = 0
    while start < len(is_open):
        # So many documents as fill a block, one at least.
        stop = max(start + 1, int(np.searchsorted(bounds, bounds[start] + _BLOCK_TOKENS, "right")) - 1)
        block = [documents.token_ids[bounds[place] : bounds[place + 1]] for place in range(start, stop)]
        signed = iter(sign([one for one, opened in zip(block, is_open[start:stop], strict=True) if not opened]))
        for one, opened in zip(block, is_open[start:stop], strict=True):
            digests.append(None if opened else digest_tokens(one))
            signatures.append(None if opened else next(signed).tobytes())
            tokens.append(one if opened else None)
        start = stop
    part_offsets = pa.array(np.searchsorted(documents.part_documents, np.arange(len(is_open) + 1)).astype(np.int32))
    columns = [
        pa.array(documents.document_ids),
        pa.array(np.diff(bounds)),
        pa.array(digests, pa.binary(16)),
        pa.array(signatures, pa.binary(NUM_PERMUTATIONS)),
        pa.ListArray.from_arrays(part_offsets, pa.array(documents.part_sequences)),
        pa.ListArray.from_arrays(part_offsets, pa.array(documents.part_tokens.astype(np.int32))),
        pa.array(tokens, pa.list_(pa.uint32())),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)
