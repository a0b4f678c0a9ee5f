"""Which documents among the candidates of a corpus are copies of each other, token for token or nearly.

Exact copies share a digest. Of each text one document goes on to the search for near ones: two whose signatures agree in five bytes that
stand together (locality-sensitive hashing: 25 such places find all but 1 in 20,000 pairs of similarity 0.8) are compared, and are alike where
their estimated Jaccard similarity is 0.8 or more. A group is what is joined by such pairs. All of it follows from the documents and their ids.

Memory: DuckDB's, which spills to the disk, and 16 bytes a pair that is alike. On the disk, while it runs, some 500 bytes a document.

Shapes: N documents.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from miniplm import layout
from miniplm.overlap.fingerprints import FINGERPRINT_VERSION, SCHEMA, digest_tokens, find_fingerprints, provide_fingerprints
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest
from miniplm.records.overlap import CopiesManifest
from miniplm.records.stored import find_record
from miniplm.selection.connection import connect, count_threads
from miniplm.selection.join import run_in_order
from miniplm.selection.minhash import NUM_PERMUTATIONS, are_alike, sign
from miniplm.storage.root import Storage, digest_content, digest_file
from miniplm.storage.tables import read_table

# Raised whenever other documents would be copies; the version of their fingerprints is a part of it.
COPIES_VERSION = f"1-{FINGERPRINT_VERSION}"
_BAND_BYTES = 5
_NUM_BANDS = NUM_PERMUTATIONS // _BAND_BYTES
# Of many documents that share a band each is compared with the first so many and with so many before it.
_MOST_NEIGHBOURS = 32
_BATCH_ROWS = 1 << 16
# Each holds a shard's tokens thrice.
_MOST_SHARDS_AT_ONCE = 4

COPIES_SCHEMA = pa.schema(
    [
        ("sequence_id", pa.int64()),
        ("document_id", pa.int64()),
        ("text_id", pa.int64()),
        ("group_id", pa.int64()),
        ("num_tokens", pa.int32()),
        ("document_tokens", pa.int64()),
    ]
)


def find_copies(storage: Storage, corpus: CorpusManifest) -> CopiesManifest | None:
    """What is known of a corpus's copies; None where nobody looked, or it is of an earlier version."""
    manifest = find_record(storage, layout.corpus_copies_manifest(corpus.corpus_id), CopiesManifest)
    if manifest is None or manifest.version != COPIES_VERSION:
        return None
    entries = [find_fingerprints(storage, shard) for shard in corpus.split_shards("candidate")]
    if None in entries or manifest.fingerprints != digest_content([entry.digest for entry in entries if entry is not None]):
        return None
    return manifest if storage.holds(layout.corpus_copies(corpus.corpus_id), manifest.digest) else None


def provide_copies(storage: Storage, corpus: CorpusManifest, on_progress: ProgressCallback = ignore_progress) -> CopiesManifest:
    """Finds or looks for the copies among the candidates, and publishes a row for each part of a document that has one:

        sequence_id, document_id, text_id (the least id of the documents with the same tokens), group_id (the least id of its group),
        num_tokens (of the part), document_tokens

    in the order of sequences. After a kill, shards that were looked at are not looked at again. Raises `CorpusError` where one is damaged.
    """
    if (found := find_copies(storage, corpus)) is not None:
        return found
    # Not held for one process: two runs of a corpus may look at once, and publish the same bytes. None takes an hour to write a file.
    storage.delete_temporary_files(layout.fingerprints_folder(corpus.corpus_id), older_than_seconds=3600.0)
    started = time.monotonic()
    shards = corpus.split_shards("candidate")
    threads = min(_MOST_SHARDS_AT_ONCE, count_threads(storage))
    entries = []
    for entry in run_in_order(lambda shard: provide_fingerprints(storage, corpus, shard), shards, threads):
        entries.append(entry)
        on_progress(Progress("look for copies", len(entries), len(shards), "shards"))
    with connect(storage) as connection:
        documents = _Documents(storage, corpus, connection)
        num_crowded = documents.compare()
        counts = documents.group()
        with storage.publish(layout.corpus_copies(corpus.corpus_id)) as path:
            documents.write(path.as_posix())
            digest = digest_file(path)
    manifest = CopiesManifest(
        version=COPIES_VERSION,
        corpus_id=corpus.corpus_id,
        fingerprints=digest_content([entry.digest for entry in entries]),
        digest=digest,
        num_crowded=num_crowded,
        seconds=time.monotonic() - started,
        **counts,
    )
    storage.write_json(layout.corpus_copies_manifest(corpus.corpus_id), manifest.as_json())
    return manifest


def read_copies(storage: Storage, manifest: CopiesManifest) -> pa.Table:
    """The rows of `COPIES_SCHEMA`. Raises `CorpusError` where they are missing or damaged."""
    return read_table(storage, layout.corpus_copies(manifest.corpus_id), manifest.digest, "copies are looked for anew")


class _Documents:
    """All documents of the candidates in DuckDB: `documents` (id, tokens, digest, signature), `parts`, and the pairs that are alike."""

    def __init__(self, storage: Storage, corpus: CorpusManifest, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE documents (document_id BIGINT, num_tokens BIGINT, digest BLOB, signature BLOB)")
        connection.execute("CREATE TABLE parts (document_id BIGINT, sequence_id BIGINT, num_tokens INTEGER)")
        opened: dict[int, list[NDArray[Any]]] = {}
        for shard in corpus.split_shards("candidate"):
            content = storage.read_bytes(layout.fingerprint_shard(shard.corpus_id, shard.shard_index))
            table = pq.read_table(pa.BufferReader(content), schema=SCHEMA)
            self._add_parts(table)
            is_whole = table["digest"].is_valid().to_numpy()
            self._add(table.filter(pa.array(is_whole)))
            rest = table.filter(pa.array(~is_whole))
            for document_id, tokens in zip(rest["document_id"].to_pylist(), rest["token_ids"], strict=True):
                opened.setdefault(document_id, []).append(tokens.values.to_numpy())
        self._add_opened(opened)
        self._pairs: list[NDArray[np.int64]] = []  # (num_pairs, 2) each

    def _add_parts(self, table: pa.Table) -> None:
        lengths = table["part_tokens"].combine_chunks()
        parts = pa.table(
            {
                "document_id": np.repeat(table["document_id"].to_numpy(), lengths.value_lengths().to_numpy(zero_copy_only=False)),
                "sequence_id": table["sequence_ids"].combine_chunks().flatten(),
                "num_tokens": lengths.flatten(),
            }
        )
        self._insert("parts", parts)

    def _add_opened(self, opened: dict[int, list[NDArray[Any]]]) -> None:
        """Documents of token ids (num_tokens,) from several shards, put together."""
        whole = {document_id: np.concatenate(parts) for document_id, parts in opened.items()}
        texts = list(whole.values())
        table = pa.table(
            {
                "document_id": pa.array(list(whole), pa.int64()),
                "num_tokens": pa.array([len(text) for text in texts], pa.int64()),
                "digest": pa.array([digest_tokens(text) for text in texts], pa.binary(16)),
                "signature": pa.array([row.tobytes() for row in sign(texts)], pa.binary(NUM_PERMUTATIONS)),
            }
        )
        self._add(table)

    def _add(self, table: pa.Table) -> None:
        self._insert("documents", table.select(["document_id", "num_tokens", "digest", "signature"]))

    def _insert(self, name: str, rows: pa.Table) -> None:
        # A cursor of its own, as another query on the connection would end the one whose rows are being read.
        with self._connection.cursor() as cursor:
            cursor.register("rows", rows)
            cursor.execute(f"INSERT INTO {name} SELECT * FROM rows")

    def compare(self) -> int:
        """Finds the pairs that are alike; how many documents share a band with too many others to be compared with each."""
        execute = self._connection.execute
        execute("CREATE TABLE texts AS SELECT digest, min(document_id) AS document_id FROM documents GROUP BY digest")
        # One document of each text; its exact copies are alike to what it is alike to.
        execute("CREATE TABLE firsts AS SELECT d.document_id, d.signature FROM documents d JOIN texts USING (digest, document_id)")
        execute("CREATE TABLE bands (key BIGINT, document_id BIGINT)")
        for rows in self._fetch("SELECT document_id, signature FROM firsts"):
            self._insert("bands", _list_bands(rows))
        execute("""
            CREATE TABLE shared AS
            WITH keys AS (SELECT key FROM bands GROUP BY key HAVING count(*) > 1)
            SELECT document_id, key, row_number() OVER (PARTITION BY key ORDER BY document_id) AS place FROM bands JOIN keys USING (key)
        """)
        execute("DROP TABLE bands")
        # By equal places, as a join by the key alone would make all pairs of a crowded band before it drops them.
        execute(f"""
            CREATE TABLE candidates AS
            SELECT x.document_id AS a, y.document_id AS b FROM shared x JOIN shared y USING (key)
            WHERE x.place <= {_MOST_NEIGHBOURS} AND x.place < y.place
            UNION
            SELECT x.document_id, y.document_id
            FROM (SELECT *, place + unnest(range(1, {_MOST_NEIGHBOURS + 1})) AS next FROM shared WHERE place > {_MOST_NEIGHBOURS}) x
            JOIN shared y ON x.key = y.key AND x.next = y.place
        """)
        execute("""
            CREATE TABLE compared AS SELECT a, b, x.signature AS left_signature, y.signature AS right_signature
            FROM candidates JOIN firsts x ON a = x.document_id JOIN firsts y ON b = y.document_id
        """)
        for rows in self._fetch("SELECT * FROM compared"):
            alike = are_alike(_as_rows(rows["left_signature"]), _as_rows(rows["right_signature"]))
            self._pairs.append(np.stack([rows["a"].to_numpy(), rows["b"].to_numpy()], axis=1)[alike])
        for rows in self._fetch(
            "SELECT t.document_id AS a, d.document_id AS b FROM texts t JOIN documents d USING (digest) WHERE t.document_id <> d.document_id"
        ):
            self._pairs.append(np.stack([rows["a"].to_numpy(), rows["b"].to_numpy()], axis=1))
        return _count(execute(f"SELECT count(DISTINCT document_id) FROM shared WHERE place > {2 * _MOST_NEIGHBOURS}"))

    def group(self) -> dict[str, int]:
        """Creates `copies`: document_id, text_id, group_id, num_tokens; gives the counts of the manifest."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        execute = self._connection.execute
        pairs = np.concatenate([np.zeros((0, 2), dtype=np.int64), *self._pairs])
        ids, places = np.unique(pairs, return_inverse=True)
        places = places.reshape(pairs.shape)
        graph = coo_array((np.ones(len(pairs), dtype=np.bool_), (places[:, 0], places[:, 1])), shape=(len(ids), len(ids)))
        _, labels = connected_components(graph, directed=False) if len(ids) else (0, np.zeros(0, dtype=np.int64))
        _, first = np.unique(labels, return_index=True)  # ids ascend, so the first of a group has its least id
        self._connection.register("grouped", pa.table({"document_id": ids, "group_id": ids[first][labels]}))
        execute("CREATE TABLE grouped_documents AS SELECT * FROM grouped")
        execute("""
            CREATE TABLE copies AS
            SELECT d.document_id, t.document_id AS text_id, g.group_id, d.num_tokens, count(*) OVER (PARTITION BY d.digest) > 1 AS is_exact
            FROM documents d JOIN grouped_documents g USING (document_id) JOIN texts t USING (digest)
        """)
        return {
            "num_documents": _count(execute("SELECT count(*) FROM documents")),
            "num_tokens": _count(execute("SELECT coalesce(sum(num_tokens), 0)::BIGINT FROM documents")),
            "num_groups": _count(execute("SELECT count(DISTINCT group_id) FROM copies")),
            "num_exact": _count(execute("SELECT count(*) FROM copies WHERE is_exact")),
            "num_near": _count(execute("SELECT count(*) FROM copies WHERE NOT is_exact")),
        }

    def write(self, path: str) -> None:
        """Writes the rows of `COPIES_SCHEMA` to a file."""
        rows = self._fetch("""
            SELECT p.sequence_id, document_id, text_id, group_id, p.num_tokens, c.num_tokens AS document_tokens
            FROM parts p JOIN copies c USING (document_id) ORDER BY sequence_id, document_id
        """)
        with pq.ParquetWriter(path, COPIES_SCHEMA, compression="zstd") as writer:
            for batch in rows:
                writer.write_table(batch.cast(COPIES_SCHEMA))

    def _fetch(self, query: str) -> Iterator[pa.Table]:
        reader = self._connection.sql(query).to_arrow_reader(_BATCH_ROWS)
        for batch in reader:
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def _list_bands(rows: pa.Table) -> pa.Table:
    """The bands of each document of a table (document_id, signature): five bytes of its signature, below the number of their place."""
    signatures = _as_rows(rows["signature"])[:, : _NUM_BANDS * _BAND_BYTES].reshape(-1, _NUM_BANDS, _BAND_BYTES).astype(np.int64)
    keys = np.broadcast_to(np.arange(_NUM_BANDS), signatures.shape[:2])
    for byte in range(_BAND_BYTES):
        keys = (keys << 8) | signatures[:, :, byte]
    return pa.table({"key": keys.reshape(-1), "document_id": np.repeat(rows["document_id"].to_numpy(), _NUM_BANDS)})


def _as_rows(signatures: Any) -> NDArray[np.uint8]:
    """A column of signatures as bytes, (N, 128)."""
    return np.frombuffer(b"".join(signatures.to_pylist()), dtype=np.uint8).reshape(-1, NUM_PERMUTATIONS)


def _count(result: Any) -> int:
    rows: Sequence[tuple[int]] = result.fetchall()
    return int(rows[0][0])
