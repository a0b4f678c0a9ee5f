"""Scores from outside, by sequence or document, as one number for each candidate sequence.

They are read once into tables of DuckDB that spill to the disk, proven, and sorted by sequence, so that a shard's values are a
range of rows. A document's value counts in a sequence by the scored tokens that it has there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.config.run import SourceConfig
from miniplm.config.selection import SelectionConfig, SignalConfig
from miniplm.corpus.text_digests import list_text_digests
from miniplm.errors import ConfigError, SourceError, list_offenders, reading_users_file
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, ShardEntry
from miniplm.scoring.shards import check_score_shards
from miniplm.selection.candidates import Floats, Integers
from miniplm.selection.documents import check_document_scores
from miniplm.selection.scans import scan_parquet
from miniplm.sources.digests import digest_source_files
from miniplm.sources.files import SourceFile, find_source_files, open_raw
from miniplm.storage.root import Storage

# Of a table with 100 M rows 2 GB are on the disk.
_MEMORY = "768MB"
_BATCH_ROWS = 1 << 18


def find_signal_files(signal: SignalConfig) -> list[SourceFile]:
    """The files of a signal, which are seen to have its columns. Raises `ConfigError` where there are none, or one has others."""
    field = f"selection.signals {signal.name}"
    try:
        files = find_source_files(SourceConfig(path=signal.path, format="parquet", domain_name="signal"))
    except SourceError as error:
        raise ConfigError(f"{field}: {error}") from error
    for file in files:
        with (
            open_raw(file) as opened,
            reading_users_file(file.path, "is no Parquet file that can be read", "write it again", ConfigError),
        ):
            schema = pq.ParquetFile(opened).schema_arrow
        if missing := [name for name in (signal.key, signal.column) if name not in schema.names]:
            raise ConfigError(f"{field}: {file.path} has no column {missing[0]}; its columns are {', '.join(schema.names)}")
        kind = schema.field(signal.column).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)):
            raise ConfigError(f"{field}: the column {signal.column} of {file.path} is {kind}, not a number")
        kind = schema.field(signal.key).type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        if not (is_text if signal.key == "text_digest" else pa.types.is_integer(kind)):
            wanted = "text of 64 hexadecimal digits" if signal.key == "text_digest" else "a whole number"
            raise ConfigError(f"{field}: the column {signal.key} of {file.path} is {kind}, not {wanted}")
    return files


def digest_signals(storage: Storage, signals: Sequence[SignalConfig]) -> list[dict[str, object]]:
    """What signals are by content: how each is read, and the digests of its files, which are remembered."""
    return [
        {**signal.model_dump(mode="json", exclude={"path"}), "files": digest_source_files(storage, find_signal_files(signal))}
        for signal in signals
    ]


class Signals:
    """The signals of a selection, by candidate sequence. Values are asked for by shard, in any order and thread."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        storage: Storage,
        corpus: CorpusManifest,
        teacher_id: str,
        config: SelectionConfig,
        on_progress: ProgressCallback = ignore_progress,
    ) -> None:
        """Reads all of them. Raises `ConfigError` for keys that come twice, values that are no numbers and missing rows without a default."""
        self._connection, self._storage, self._corpus, self._teacher_id = connection, storage, corpus, teacher_id
        self._signals = config.signals
        self._lock = threading.Lock()
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        for done, signal in enumerate(config.signals, start=1):
            self._read(signal)
            self._check(signal)
            self._sort(signal)
            on_progress(Progress("read signals", done, len(config.signals), "signals"))

    @property
    def names(self) -> list[str]:
        return [signal.name for signal in self._signals]

    def values(self, shard: ShardEntry) -> dict[str, Floats]:
        """The value of each signal in each sequence of a shard, (num_sequences,), in the order of their ids."""
        found = {}
        for signal in self._signals:
            first, stop = shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences
            with self._connection.cursor() as cursor:
                rows = cursor.execute(
                    f"SELECT sequence_id, value FROM {_table(signal)} WHERE sequence_id >= ? AND sequence_id < ?", [first, stop]
                ).fetchnumpy()
            values = np.full(shard.num_sequences, np.nan if signal.missing is None else signal.missing)
            values[rows["sequence_id"] - first] = rows["value"]
            if np.isnan(values).any():
                missing = np.flatnonzero(np.isnan(values))
                raise ConfigError(
                    f"selection.signals {signal.name}: {len(missing)} of {shard.num_sequences} sequences of {layout.shard_name(shard.shard_index)} "
                    f"have no value (sequence_id {list_offenders([first + int(row) for row in missing[:10]], len(missing))}); add rows for them, or "
                    "give the signal a default: missing"
                )
            found[signal.name] = values
        return found

    def _read(self, signal: SignalConfig) -> None:
        """The table `read_NAME` of the rows that have a value."""
        key_type, key = ("VARCHAR", "lower(key)") if signal.key == "text_digest" else ("BIGINT", "key")
        self._connection.execute(f"CREATE OR REPLACE TABLE read_{signal.name} (key {key_type}, value DOUBLE)")
        for file in find_signal_files(signal):
            with open_raw(file) as opened, reading_users_file(file.path, "cannot be read", "write it again", ConfigError):
                for batch in pq.ParquetFile(opened).iter_batches(_BATCH_ROWS, columns=[signal.key, signal.column]):
                    part = pa.table({"key": batch[signal.key], "value": batch[signal.column]})
                    with self._connection.cursor() as cursor:
                        cursor.register("part", part)
                        cursor.execute(f"INSERT INTO read_{signal.name} SELECT {key}, value FROM part WHERE value IS NOT NULL")

    def _check(self, signal: SignalConfig) -> None:
        field, table = f"selection.signals {signal.name}", f"read_{signal.name}"
        for problem, where in (
            (
                f"has rows without a {signal.key}",
                f"SELECT value, count(*) OVER () FROM {table} WHERE key IS NULL ORDER BY value LIMIT 10",
            ),
            (
                f"has a {signal.column} that is NaN or infinite",
                f"SELECT key, count(*) OVER () FROM {table} WHERE NOT isfinite(value) ORDER BY key LIMIT 10",
            ),
            (
                f"has more than one row for a {signal.key}",
                f"SELECT key, count(*) OVER () FROM (SELECT key FROM {table} GROUP BY key HAVING count(*) > 1) ORDER BY key LIMIT 10",
            ),
        ):
            if rows := self._connection.execute(where).fetchall():
                offenders = list_offenders([row[0] for row in rows], rows[0][1])
                raise ConfigError(
                    f"{field}: {signal.path} {problem}: {offenders}; give each {signal.key} one finite number, or NULL for none"
                )

    def _sort(self, signal: SignalConfig) -> None:
        """The table of the signal by sequence, in the order of ids."""
        if signal.key == "sequence_id":
            source = f"SELECT key AS sequence_id, value FROM read_{signal.name}"
        else:
            if signal.key == "text_digest":
                self._by_document(signal)
            self._check_documents(signal)
            default = "NULL" if signal.missing is None else repr(signal.missing)
            # In one order, since a sum of floats depends on it in its last bits.
            source = f"""
                SELECT sequence_id, CASE WHEN sum(tokens) = 0 THEN list_sum(list(value ORDER BY document_id)) / count(*)
                                         ELSE list_sum(list(value * tokens ORDER BY document_id)) / sum(tokens) END AS value
                FROM (SELECT sequence_id, document_id, num_scored_tokens AS tokens, coalesce(value, {default}) AS value
                      FROM {self._scan_documents()} LEFT JOIN read_{signal.name} ON key = document_id WHERE document_id IS NOT NULL)
                GROUP BY sequence_id
            """
        self._connection.execute(f"CREATE OR REPLACE TABLE {_table(signal)} AS {source} ORDER BY sequence_id")
        self._connection.execute(f"DROP TABLE read_{signal.name}")

    def _by_document(self, signal: SignalConfig) -> None:
        """Puts document ids in the place of digests; documents with one text have one value."""
        table, texts = f"read_{signal.name}", scan_parquet(self._storage, list_text_digests(self._storage, self._corpus))
        self._connection.execute(
            f"CREATE TABLE by_document AS SELECT document_id AS key, value FROM {texts} JOIN {table} ON key = text_digest"
        )
        self._connection.execute(f"DROP TABLE {table}")
        self._connection.execute(f"ALTER TABLE by_document RENAME TO {table}")

    def _check_documents(self, signal: SignalConfig) -> None:
        """Raises where documents have no value, unless there is a default."""
        states = check_score_shards(self._storage, self._corpus, self._teacher_id)
        check_document_scores(self._storage, self._corpus, "teacher", [state.manifest for state in states])
        if signal.missing is not None:
            return
        rows = self._connection.execute(f"""
            SELECT document_id, count(*) OVER () FROM (SELECT DISTINCT document_id FROM {self._scan_documents()} WHERE document_id IS NOT NULL)
            WHERE document_id NOT IN (SELECT key FROM read_{signal.name}) ORDER BY document_id LIMIT 10
        """).fetchall()
        if rows:
            raise ConfigError(
                f"selection.signals {signal.name}: {rows[0][1]} documents of the candidates have no value (document_id "
                f"{list_offenders([row[0] for row in rows], rows[0][1])}); add rows for them, or give the signal a default: missing"
            )

    def _scan_documents(self) -> str:
        shards = self._corpus.split_shards("candidate")
        return scan_parquet(
            self._storage, [layout.document_scores(shard.corpus_id, self._teacher_id, shard.shard_index) for shard in shards]
        )


def _table(signal: SignalConfig) -> str:
    return f"signal_{signal.name}"


class DocumentSignals(Signals):
    """The signals of a selection by documents: each document's own value."""

    def values_of(self, document_ids: Integers) -> dict[str, Floats]:
        """The value of each signal for documents, (num_documents,), by their ids, (num_documents,) ascending."""
        found = {}
        for signal in self._signals:
            values = np.full(len(document_ids), np.nan if signal.missing is None else signal.missing)
            if len(document_ids):
                with self._connection.cursor() as cursor:
                    rows = cursor.execute(
                        f"SELECT key, value FROM {_table(signal)} WHERE key BETWEEN ? AND ? ORDER BY key",
                        [int(document_ids[0]), int(document_ids[-1])],
                    ).fetchnumpy()
                places = np.searchsorted(document_ids, rows["key"])
                here = document_ids[np.minimum(places, len(document_ids) - 1)] == rows["key"]
                values[places[here]] = rows["value"][here]
            found[signal.name] = values
        return found

    def _sort(self, signal: SignalConfig) -> None:
        """The table of the signal by document, in the order of ids."""
        if signal.key == "text_digest":
            self._by_document(signal)
        self._check_documents(signal)
        self._connection.execute(
            f"CREATE OR REPLACE TABLE {_table(signal)} AS SELECT key, value FROM read_{signal.name} ORDER BY key"
        )
        self._connection.execute(f"DROP TABLE read_{signal.name}")
