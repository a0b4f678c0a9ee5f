"""The SHA-256 of each document's text, by which scores from elsewhere name it: read out of the sources when a selection asks for it, and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus.identity import PlannedFile, find_planned_files, index_by_content
from miniplm.errors import CorpusError
from miniplm.records.manifests import CorpusManifest
from miniplm.records.stored import find_record
from miniplm.records.texts import TextDigestsManifest
from miniplm.sources.documents import Document
from miniplm.sources.reading import read_source_records
from miniplm.storage.root import Storage, digest_file

_SCHEMA = pa.schema([("document_id", pa.int64()), ("text_digest", pa.string())])
_BATCH_DOCUMENTS = 1 << 14


def provide_text_digests(storage: Storage, config: CorpusConfig, corpus: CorpusManifest) -> list[TextDigestsManifest]:
    """The digests of a corpus and of those it extends; made of the sources where they are not kept yet, what those raise included.

    Documents of source files that are gone have none; the manifests name these files.
    """
    manifests, files = [], None
    for corpus_id in corpus.lineage:
        manifest = _find_kept(storage, corpus_id)
        if manifest is None:
            files = index_by_content(find_planned_files(storage, config)) if files is None else files
            manifest = _read(storage, corpus, corpus_id, files)
        manifests.append(manifest)
    return manifests


def list_text_digests(storage: Storage, corpus: CorpusManifest) -> list[str]:
    """The kept files, relative to the root: `document_id`, `text_digest` (64 hexadecimal digits). Raises `CorpusError` where one is not there."""
    missing = [corpus_id for corpus_id in corpus.lineage if _find_kept(storage, corpus_id) is None]
    if missing:
        raise CorpusError(
            f"the digests of the texts of corpus {missing[0]} are not at {storage.root}; `miniplm select CONFIG` reads them out of the sources"
        )
    return [layout.text_digests(corpus_id) for corpus_id in corpus.lineage]


def _find_kept(storage: Storage, corpus_id: str) -> TextDigestsManifest | None:
    manifest = find_record(storage, layout.text_digests_manifest(corpus_id), TextDigestsManifest)
    return manifest if manifest is not None and storage.holds(layout.text_digests(corpus_id), manifest.digest) else None


def _read(
    storage: Storage, corpus: CorpusManifest, corpus_id: str, files: dict[tuple[str, str], PlannedFile]
) -> TextDigestsManifest:
    gone: list[str] = []
    num_documents = 0
    with storage.publish(layout.text_digests(corpus_id)) as path:
        with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
            for batch in _batch(_list_digests(corpus, corpus_id, files, gone)):
                num_documents += len(batch)
                ids, digests = zip(*batch, strict=True)
                writer.write_table(pa.table([pa.array(ids, pa.int64()), pa.array(digests)], schema=_SCHEMA))
        digest = digest_file(path)
    manifest = TextDigestsManifest(corpus_id=corpus_id, digest=digest, num_documents=num_documents, gone_files=tuple(gone))
    storage.write_json(layout.text_digests_manifest(corpus_id), manifest.as_json())
    return manifest


def _list_digests(
    corpus: CorpusManifest, corpus_id: str, files: dict[tuple[str, str], PlannedFile], gone: list[str]
) -> Iterator[tuple[int, str]]:
    for source in corpus.sources:
        if (source.corpus_id or corpus_id) != corpus_id:
            continue
        planned = files.get((source.digest, source.reading))
        if planned is None:
            gone.append(source.path)
            continue
        for record in read_source_records(planned.file, planned.source, source.first_document_id, 0, lambda num_bytes: None):
            if isinstance(record, Document):
                yield record.document_id, hashlib.sha256(record.text.encode("utf-8")).hexdigest()


def _batch(items: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch
