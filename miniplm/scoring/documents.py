"""The scores of documents: what each document's part of a sequence adds to the sequence's NLL.

They are known while a sequence is scored, and cost no pass of their own. Over the parts of a sequence `num_scored_tokens`
and `nll_sum` add up to the sequence's row in the score file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.errors import ScoreError
from miniplm.records.manifests import CorpusManifest, DocumentScoresEntry, ScoreShardManifest, ShardEntry
from miniplm.records.stored import ShardState
from miniplm.storage.root import Storage, digest_stream
from miniplm.storage.tables import publish_table

if TYPE_CHECKING:
    from miniplm.scoring.engine import SequenceScores

DOCUMENT_SCHEMA = pa.schema(
    [("document_id", pa.int64()), ("sequence_id", pa.int64()), ("num_scored_tokens", pa.int32()), ("nll_sum", pa.float64())]
)


def publish_document_scores(
    storage: Storage, shard: ShardEntry, model_id: str, table: pa.Table, scores: SequenceScores
) -> DocumentScoresEntry:
    """Publishes `documents/shard-N.documents.parquet`: a row for each document of each sequence of `table`, in their order.

    `table` has `sequence_id` and `document_ids`. Where a sequence of several documents has an EOS that ends none of them, it
    has one row whose `document_id` is NULL.
    """
    document_ids = table["document_ids"].combine_chunks()
    num_documents = document_ids.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    known = num_documents == scores.num_parts
    # Where there is one document, all parts are its own; where their numbers differ, the sequence stays whole.
    num_rows = np.where(known, num_documents, 1)
    part_rows = np.repeat(np.append(0, np.cumsum(num_rows))[:-1], scores.num_parts)
    within = np.arange(len(part_rows)) - np.repeat(np.append(0, np.cumsum(scores.num_parts))[:-1], scores.num_parts)
    part_rows += np.where(np.repeat(known, scores.num_parts), within, 0)
    nll_sum, num_scored = np.zeros(num_rows.sum()), np.zeros(num_rows.sum(), dtype=np.int32)
    np.add.at(nll_sum, part_rows, scores.part_nll_sum)
    np.add.at(num_scored, part_rows, scores.part_num_scored_tokens)
    is_unattributed = ~known & (num_documents > 1)
    first_of_each = np.append(0, np.cumsum(num_documents))[:-1]
    source_rows = np.repeat(first_of_each, num_rows) + (
        np.arange(num_rows.sum()) - np.repeat(np.append(0, np.cumsum(num_rows))[:-1], num_rows)
    )
    ids = document_ids.flatten().to_numpy()[source_rows]
    scored = pa.Table.from_arrays(
        [
            pa.array(ids, mask=np.repeat(is_unattributed, num_rows)),
            pa.array(np.repeat(table["sequence_id"].to_numpy(), num_rows)),
            pa.array(num_scored),
            pa.array(nll_sum),
        ],
        schema=DOCUMENT_SCHEMA,
    )
    # Ids repeat and grow slowly: compressed, half the size for no time.
    file = layout.document_scores(shard.corpus_id, model_id, shard.shard_index)
    digest, num_bytes = publish_table(storage, file, scored, compression="zstd")
    num_unattributed = int(is_unattributed.sum())
    return DocumentScoresEntry(digest=digest, num_bytes=num_bytes, num_rows=scored.num_rows, num_unattributed=num_unattributed)


def find_document_scores(storage: Storage, shard: ShardEntry, manifest: ScoreShardManifest) -> pa.Table | None:
    """The document scores of a scored shard; None where they are missing (as in those of earlier versions) or damaged."""
    if manifest.documents is None:
        return None
    try:
        content = storage.read_bytes(layout.document_scores(shard.corpus_id, manifest.model_id, shard.shard_index))
    except FileNotFoundError:
        return None
    return pq.read_table(pa.BufferReader(content)) if digest_stream(pa.BufferReader(content)) == manifest.documents.digest else None


def read_document_scores(storage: Storage, shard: ShardEntry, manifest: ScoreShardManifest) -> pa.Table:
    """As `find_document_scores`. Raises `ScoreError` with what makes them where there are none."""
    table = find_document_scores(storage, shard, manifest)
    if table is None:
        path = layout.document_scores(shard.corpus_id, manifest.model_id, shard.shard_index)
        state = "missing" if manifest.documents is None or not storage.exists(path) else "damaged"
        raise ScoreError(
            f"{layout.shard_name(shard.shard_index)}: the scores of its documents under model {manifest.model_id} are {state} "
            f"({storage.url(path)}); `miniplm score CONFIG --documents` makes what is missing"
        )
    return table


def list_without_documents(storage: Storage, corpus: CorpusManifest, states: Sequence[ShardState[ScoreShardManifest]]) -> list[int]:
    """The shards of those that are scored whose scores of documents are missing or damaged."""
    shards = {shard.shard_index: shard for shard in corpus.split_shards("candidate")}
    scored = [(shards[state.shard_index], state.manifest) for state in states if state.manifest is not None]
    return [
        shard.shard_index
        for shard, manifest in scored
        if manifest.documents is None
        or not storage.holds(
            layout.document_scores(shard.corpus_id, manifest.model_id, shard.shard_index), manifest.documents.digest
        )
    ]
