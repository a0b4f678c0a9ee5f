"""A file of encoded documents on its way from the process that tokenised them to the one that packs them: a stream of Arrow batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from miniplm.corpus.encoding import EncodedDocuments
from miniplm.layout import SPLITS
from miniplm.records.manifests import Split
from miniplm.sources.documents import Origin, Rejection

_MOST_UINT16_IDS = 1 << 16


def write_block(path: Path, batches: Sequence[EncodedDocuments], vocab_size: int) -> None:
    """Writes batches of documents and rejections. The same batches give the same bytes, by one version of PyArrow.

    A rejection's origin goes without its path, which is that of the file that holds the record.
    """
    schema = _make_schema(vocab_size)
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(_pack(batch, schema))


def read_block(content: bytes) -> Iterator[EncodedDocuments]:
    """The batches of a file; the paths of rejections are empty."""
    with pa.ipc.open_stream(content) as reader:
        for batch in reader:
            yield _unpack(batch)


def drop_before(batch: EncodedDocuments, first_document_id: int, needed_from: dict[Split, int]) -> EncodedDocuments:
    """The records from `first_document_id` on, and of these the documents that their split needs."""
    if not batch.document_ids or batch.document_ids[0] >= max(first_document_id, *needed_from.values()):
        kept_rejections = [one for one in batch.rejections if one.document_id >= first_document_id]
        return replace(batch, rejections=kept_rejections)
    ends = np.cumsum([0, *batch.num_tokens])
    kept = [
        index
        for index, (document_id, split) in enumerate(zip(batch.document_ids, batch.splits, strict=True))
        if document_id >= max(first_document_id, needed_from[split])
    ]
    token_ids = [batch.token_ids[ends[index] : ends[index + 1]] for index in kept]
    return EncodedDocuments(
        document_ids=[batch.document_ids[index] for index in kept],
        splits=[batch.splits[index] for index in kept],
        domains=[batch.domains[index] for index in kept],
        num_bytes=[batch.num_bytes[index] for index in kept],
        num_tokens=[batch.num_tokens[index] for index in kept],
        token_ids=np.concatenate(token_ids) if token_ids else np.empty(0, dtype=np.uint32),
        rejections=[one for one in batch.rejections if one.document_id >= first_document_id],
        num_documents=sum(document_id >= first_document_id for document_id in batch.document_ids),
    )


def _make_schema(vocab_size: int) -> pa.Schema:
    token_type = pa.uint16() if vocab_size <= _MOST_UINT16_IDS else pa.uint32()
    return pa.schema(
        [
            pa.field("document_id", pa.int64(), nullable=False),
            pa.field("split", pa.int8()),
            pa.field("domain", pa.string()),
            pa.field("num_bytes", pa.int64()),
            pa.field("token_ids", pa.large_list(token_type), nullable=False),
            pa.field("rejection", pa.string()),
        ]
    )


def _pack(batch: EncodedDocuments, schema: pa.Schema) -> pa.RecordBatch:
    """Documents, then rejections, which have nothing but an id and their reason."""
    none = [None] * len(batch.rejections)
    offsets = np.zeros(len(batch.document_ids) + len(batch.rejections) + 1, dtype=np.int64)
    np.cumsum([*batch.num_tokens, *([0] * len(batch.rejections))], out=offsets[1:])
    value_type = schema.field("token_ids").type.value_type
    columns = [
        pa.array([*batch.document_ids, *(one.document_id for one in batch.rejections)], pa.int64()),
        pa.array([*(SPLITS.index(split) for split in batch.splits), *none], pa.int8()),
        pa.array([*batch.domains, *none], pa.string()),
        pa.array([*batch.num_bytes, *none], pa.int64()),
        pa.LargeListArray.from_arrays(offsets, pa.array(batch.token_ids.astype(value_type.to_pandas_dtype(), copy=False))),
        pa.array([*([None] * len(batch.document_ids)), *map(_pack_rejection, batch.rejections)], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _unpack(batch: pa.RecordBatch) -> EncodedDocuments:
    num_documents = batch.column("rejection").null_count
    documents = batch.slice(0, num_documents)
    lists = batch.column("token_ids")
    document_ids: list[int] = batch.column("document_id").to_pylist()
    told = batch.column("rejection").slice(num_documents).to_pylist()
    rejections = [_unpack_rejection(*one) for one in zip(document_ids[num_documents:], told, strict=True)]
    names: dict[str, str] = {}  # the same few, once each
    return EncodedDocuments(
        document_ids=document_ids[:num_documents],
        splits=[SPLITS[index] for index in documents.column("split").to_pylist()],
        domains=[names.setdefault(name, name) for name in documents.column("domain").to_pylist()],
        num_bytes=documents.column("num_bytes").to_pylist(),
        num_tokens=np.diff(lists.offsets.to_numpy())[:num_documents].tolist(),
        token_ids=lists.values.to_numpy().astype(np.uint32, copy=False),
        rejections=rejections,
        num_documents=num_documents + sum(one.reason == "no_tokens" for one in rejections),
    )


def _pack_rejection(one: Rejection) -> str:
    return json.dumps([one.origin.unit, one.origin.number, one.reason, one.message, one.excerpt])


def _unpack_rejection(document_id: int, told: str) -> Rejection:
    unit, number, reason, message, excerpt = json.loads(told)
    return Rejection(document_id, Origin("", unit, number), reason, message, excerpt)
