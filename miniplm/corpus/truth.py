"""Which labels the documents of each candidate sequence bear: read out of the sources when the corpus is there, and kept beside it.

The pipeline never reads it: a corpus with and without it has the same id, shards, scores and selections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus.identity import PlannedFile, find_planned_files, index_by_content
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.errors import ConfigError, SourceError, list_offenders
from miniplm.records.manifests import CorpusManifest, SourceEntry
from miniplm.records.stored import find_record
from miniplm.records.truth import UNKNOWN, TruthManifest
from miniplm.sources.labels import list_fields, read_labels
from miniplm.storage.root import Storage, digest_content, digest_file

# Raised when a change of the code gives the same documents other labels.
TRUTH_VERSION = 1
# More labels than that are no kinds of text but names of documents.
MOST_KINDS = 100

_SCHEMA = pa.schema([("sequence_id", pa.int64()), ("kind", pa.dictionary(pa.int32(), pa.string())), ("num_tokens", pa.int32())])


def resolve_truth_id(field: str) -> str:
    """What the labels of a field are kept under, beside the id of the corpus, which stands for the bytes of its sources."""
    return digest_content([TRUTH_VERSION, field])


def provide_truth(
    storage: Storage, config: CorpusConfig, corpus: CorpusManifest, found: Iterable[PlannedFile] | None = None
) -> list[TruthManifest]:
    """The labels under `corpus.truth` of a corpus and of those it extends, read out of the sources where they are not kept yet.

    `found` are the files that the sources name, looked up where not given. Raises `ConfigError` where no record has the field, or it is
    no label, and what reading the sources raises.
    """
    field = config.truth
    assert field is not None, "asked for only where a field is named"
    manifests = []
    files: dict[tuple[str, str], PlannedFile] | None = None
    for corpus_id in corpus.lineage:
        manifest = _find_kept(storage, corpus_id, field)
        if manifest is None:
            if files is None:
                files = index_by_content(find_planned_files(storage, config) if found is None else found)
            manifest = _Labelling(storage, corpus, corpus_id, field, files).run()
        manifests.append(manifest)
    if not any(set(manifest.kinds) - {UNKNOWN} for manifest in manifests):
        raise _no_label(field, files or index_by_content(find_planned_files(storage, config)))
    return manifests


def _find_kept(storage: Storage, corpus_id: str, field: str) -> TruthManifest | None:
    truth_id = resolve_truth_id(field)
    manifest = find_record(storage, layout.truth_manifest(corpus_id, truth_id), TruthManifest)
    if manifest is None or not storage.holds(layout.truth_file(corpus_id, truth_id), manifest.digest):
        return None
    # Before 2026-11-28 a NaN was a label of this name. It is no reason to read all others anew, of which sources may be gone.
    return None if "nan" in manifest.kinds else manifest


def _no_label(field: str, files: dict[tuple[str, str], PlannedFile]) -> ConfigError:
    planned = next(iter(files.values()))
    names = list_fields(planned.file, planned.source)
    has = (
        f"the first record of {planned.file.path} has {list_offenders(names, most=30)}"
        if names
        else "files of plain text have none"
    )
    return ConfigError(
        f"corpus.truth: no record of the sources has a value in a field {field!r}; {has}. Name one that says what a document is, or leave corpus.truth out"
    )


class _Labelling:
    """The labels of one corpus of the lineage, for its own shards."""

    def __init__(
        self, storage: Storage, corpus: CorpusManifest, corpus_id: str, field: str, files: dict[tuple[str, str], PlannedFile]
    ) -> None:
        self._storage = storage
        self._corpus = corpus
        self._corpus_id = corpus_id
        self._field = field
        self._files = files
        self._codes: dict[str, int] = {UNKNOWN: 0}

    def run(self) -> TruthManifest:
        own = [source for source in self._corpus.sources if (source.corpus_id or self._corpus_id) == self._corpus_id]
        first = min((source.first_document_id for source in own), default=0)
        num_records = sum(source.num_records for source in own)
        # One code a record: 2 bytes each is what memory holds of a corpus.
        codes: NDArray[np.int16] = np.zeros(num_records, dtype=np.int16)
        gone = []
        for source in own:
            planned = self._files.get((source.digest, source.reading))
            if planned is None:
                gone.append(source.path)
                continue
            start = source.first_document_id - first
            codes[start : start + source.num_records] = self._read_codes(planned, source)
        names = list(self._codes)
        truth_id = resolve_truth_id(self._field)
        with self._storage.publish(layout.truth_file(self._corpus_id, truth_id)) as path:
            with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
                for table in self._list_parts(lambda document_id: int(codes[document_id - first]), names):
                    writer.write_table(table)
            digest = digest_file(path)
        counted = Counter(codes.tolist())
        manifest = TruthManifest(
            corpus_id=self._corpus_id,
            field=self._field,
            digest=digest,
            kinds={name: counted[code] for name, code in sorted(self._codes.items()) if counted[code]},
            gone_files=tuple(gone),
        )
        self._storage.write_json(layout.truth_manifest(self._corpus_id, truth_id), manifest.as_json())
        return manifest

    def _read_codes(self, planned: PlannedFile, source: SourceEntry) -> list[int]:
        codes = [self._code(label) for label in read_labels(planned.file, planned.source, self._field)]
        if len(codes) != source.num_records:
            raise SourceError(
                f"{planned.file.path} gives {len(codes):,} records, the corpus {self._corpus_id} took {source.num_records:,} from these bytes; "
                "prepare the corpus anew with this version: delete its folder and run `miniplm prepare CONFIG`"
            )
        return codes

    def _code(self, label: str | None) -> int:
        if label is None:
            return 0
        code = self._codes.setdefault(label, len(self._codes))
        if code > MOST_KINDS:
            raise ConfigError(
                f"corpus.truth: the field {self._field!r} has more than {MOST_KINDS} values ({list_offenders(list(self._codes)[1:], most=5)}); name a field "
                "that says what kind of text a document is, not which document it is"
            )
        return code

    def _list_parts(self, find_code: Callable[[int], int], names: list[str]) -> Iterator[pa.Table]:
        """The rows of the file, shard by shard: how many tokens of each label a sequence holds."""
        eos_token_id = self._corpus.tokenizer.eos_token_id
        for entry in self._corpus.split_shards("candidate"):
            if entry.corpus_id != self._corpus_id:
                continue
            table = read_shard(self._storage, entry, ["sequence_id", "document_ids", "token_ids"])
            rows: list[tuple[int, int, int]] = []
            for sequence_id, document_ids, token_ids in zip(
                table["sequence_id"].to_pylist(), table["document_ids"].to_pylist(), read_token_ids(table), strict=True
            ):
                tokens: Counter[int] = Counter()
                for document_id, num_tokens in zip(
                    document_ids, split_tokens(token_ids, eos_token_id, len(document_ids)), strict=True
                ):
                    if num_tokens:
                        tokens[find_code(document_id)] += num_tokens
                rows += [(sequence_id, code, num_tokens) for code, num_tokens in sorted(tokens.items())]
            sequence_ids, codes, counts = zip(*rows, strict=True) if rows else ((), (), ())
            kinds = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names, pa.string()))
            yield pa.Table.from_arrays([pa.array(sequence_ids, pa.int64()), kinds, pa.array(counts, pa.int32())], schema=_SCHEMA)


def split_tokens(token_ids: NDArray[np.integer], eos_token_id: int, num_documents: int) -> list[int]:
    """How many tokens of a sequence (num_tokens,) each of its documents has, their EOS included, in order.

    An EOS alone, the end of a document whose text lies in the sequence before, is counted with the document behind it. Where a text
    itself holds the separator, so that the ends cannot be told apart, all documents count alike.
    """
    ends = np.flatnonzero(token_ids == eos_token_id) + 1
    if not len(ends) or ends[-1] != len(token_ids):
        ends = np.append(ends, len(token_ids))
    if len(ends) != num_documents:
        share, rest = divmod(len(token_ids), num_documents)
        return [share + (index < rest) for index in range(num_documents)]
    counts: list[int] = np.diff(ends, prepend=0).tolist()
    if num_documents > 1 and token_ids[0] == eos_token_id:
        counts[:2] = [0, 1 + counts[1]]
    return counts
