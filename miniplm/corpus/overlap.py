"""Which documents of held-out text from elsewhere are in a corpus too: found by digests of their texts, byte for byte, once for each pair."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus.identity import PlannedFile, find_planned_files, index_by_content
from miniplm.corpus.splits import assign_split
from miniplm.records.manifests import CorpusManifest, Split
from miniplm.records.stored import find_record
from miniplm.records.texts import OverlapRecord
from miniplm.sources.documents import Document
from miniplm.sources.reading import read_source_records
from miniplm.storage.root import Storage


def find_overlap(
    storage: Storage, text_id: str, text_files: Iterable[PlannedFile], config: CorpusConfig, corpus: CorpusManifest
) -> list[OverlapRecord]:
    """What a corpus, and each that it extends, shares with the text; read from both sources where it is not known yet, as documents, not packed.

    Raises what reading sources raises.
    """
    kept = {
        corpus_id: find_record(storage, layout.corpus_overlap(text_id, corpus_id), OverlapRecord) for corpus_id in corpus.lineage
    }
    unknown = [corpus_id for corpus_id, record in kept.items() if record is None]
    if unknown:
        wanted = {digest: place for digest, place, _ in _list_digests(text_files)}
        files = index_by_content(find_planned_files(storage, config))
        for corpus_id in unknown:
            kept[corpus_id] = _look_up(corpus, corpus_id, config, wanted, files)
            storage.write_json(layout.corpus_overlap(text_id, corpus_id), kept[corpus_id].as_json())  # type: ignore[union-attr]
    return [record for record in kept.values() if record is not None]


def find_kept_overlap(storage: Storage, text_id: str, corpus: CorpusManifest) -> list[OverlapRecord]:
    """As `find_overlap`, as far as it is known."""
    kept = (find_record(storage, layout.corpus_overlap(text_id, corpus_id), OverlapRecord) for corpus_id in corpus.lineage)
    return [record for record in kept if record is not None]


def _look_up(
    corpus: CorpusManifest,
    corpus_id: str,
    config: CorpusConfig,
    wanted: dict[bytes, str],
    files: dict[tuple[str, str], PlannedFile],
) -> OverlapRecord:
    shared: dict[str, Split] = {}
    first, gone = "", []
    for source in corpus.sources:
        if (source.corpus_id or corpus_id) != corpus_id:
            continue
        planned = files.get((source.digest, source.reading))
        if planned is None:
            gone.append(source.path)
            continue
        for digest, _, text in _list_digests([planned]):
            if digest in wanted:
                first = first or wanted[digest]
                shared[digest.hex()] = assign_split(text.encode("utf-8"), config.seed, config.splits)
    return OverlapRecord(corpus_id=corpus_id, num_texts=len(wanted), shared=shared, first=first, gone_files=tuple(gone))


def _list_digests(files: Iterable[PlannedFile]) -> Iterator[tuple[bytes, str, str]]:
    """Digest, place and text of each document of the files; records without one are left out, as they are of a corpus."""
    for planned in files:
        for record in read_source_records(planned.file, planned.source, 0, 0, lambda num_bytes: None):
            if isinstance(record, Document):
                place = f"{record.origin.path}, {record.origin.unit} {record.origin.number}"
                yield hashlib.blake2b(record.text.encode("utf-8"), digest_size=16).digest(), place, record.text
