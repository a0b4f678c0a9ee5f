"""Scores from outside, by sequence or document, as one number for each candidate, a sequence or a document.

They are read once into tables of DuckDB that spill to the disk, proven, and sorted by id, so that a shard's values are a
range of rows. A document's value counts in a sequence by the scored tokens that it has there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
from miniplm.records.manifests import CorpusManifest
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


# Gives the DuckDB relation of the parts of documents that are ranked, or make up what is: `sequence_id`, `document_id` (NULL where it is
# not known whose a part is) and `num_scored_tokens`.
ListParts = Callable[[], str]


class Signals:
    """The signals of a selection, by what it ranks: sequences or documents. Values are asked for by id, in any thread."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        storage: Storage,
        corpus: CorpusManifest,
        config: SelectionConfig,
        list_parts: ListParts,
        on_progress: ProgressCallback = ignore_progress,
    ) -> None:
        """Reads all of them. Raises `ConfigError` for keys that come twice, values that are no numbers and missing rows without a default,
        and what `list_parts` raises, which is asked where a signal is by document."""
        self._connection, self._storage, self._corpus, self._list_parts = connection, storage, corpus, list_parts
        self._unit, self._signals = config.unit, config.signals
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        for done, signal in enumerate(config.signals, start=1):
            self._read(signal)
            self._check(signal)
            self._sort(signal)
            on_progress(Progress("read signals", done, len(config.signals), "signals"))

    def read_values(self, ids: Integers, where: str = "") -> dict[str, Floats]:
        """The value of each signal for what has these ids, (num_ids,) ascending: (num_ids,) each. Ids lie close together, as all between them are read.

        Raises `ConfigError` where one has none; `where` says for people which these are.
        """
        found = {}
        for signal in self._signals:
            values = np.full(len(ids), np.nan if signal.missing is None else signal.missing)
            if len(ids):
                with self._connection.cursor() as cursor:
                    rows = cursor.execute(
                        f"SELECT key, value FROM {_table(signal)} WHERE key BETWEEN ? AND ? ORDER BY key",
                        [int(ids[0]), int(ids[-1])],
                    ).fetchnumpy()
                places = np.minimum(np.searchsorted(ids, rows["key"]), len(ids) - 1)
                here = ids[places] == rows["key"]
                values[places[here]] = rows["value"][here]
            if np.isnan(values).any():
                missing = ids[np.isnan(values)]
                raise ConfigError(
                    f"selection.signals {signal.name}: {len(missing)} of {len(ids)} {self._unit}s{where} have no value "
                    f"({self._unit}_id {list_offenders(missing[:10].tolist(), len(missing))}); add rows for them, or give the signal a default: missing"
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
        """The table of the signal by what is ranked, in the order of ids."""
        source = f"SELECT key, value FROM read_{signal.name}"
        if signal.key != "sequence_id":
            if signal.key == "text_digest":
                self._by_document(signal)
            parts = self._list_parts()
            self._check_documents(signal, parts)
            if self._unit == "sequence":
                source = self._average(signal, parts)
        self._connection.execute(f"CREATE OR REPLACE TABLE {_table(signal)} AS {source} ORDER BY key")
        self._connection.execute(f"DROP TABLE read_{signal.name}")

    def _average(self, signal: SignalConfig, parts: str) -> str:
        """The query for each sequence's mean over the documents in it, by the scored tokens that each has there."""
        default = "NULL" if signal.missing is None else repr(signal.missing)
        # In one order, since a sum of floats depends on it in its last bits.
        return f"""
            SELECT sequence_id AS key, CASE WHEN sum(tokens) = 0 THEN list_sum(list(value ORDER BY document_id)) / count(*)
                                            ELSE list_sum(list(value * tokens ORDER BY document_id)) / sum(tokens) END AS value
            FROM (SELECT sequence_id, document_id, num_scored_tokens AS tokens, coalesce(value, {default}) AS value
                  FROM {parts} LEFT JOIN read_{signal.name} ON key = document_id WHERE document_id IS NOT NULL)
            GROUP BY sequence_id
        """

    def _by_document(self, signal: SignalConfig) -> None:
        """Puts document ids in the place of digests; documents with one text have one value."""
        table, texts = f"read_{signal.name}", scan_parquet(self._storage, list_text_digests(self._storage, self._corpus))
        self._connection.execute(
            f"CREATE TABLE by_document AS SELECT document_id AS key, value FROM {texts} JOIN {table} ON key = text_digest"
        )
        self._connection.execute(f"DROP TABLE {table}")
        self._connection.execute(f"ALTER TABLE by_document RENAME TO {table}")

    def _check_documents(self, signal: SignalConfig, parts: str) -> None:
        """Raises where documents have no value, unless there is a default."""
        if signal.missing is not None:
            return
        rows = self._connection.execute(f"""
            SELECT document_id, count(*) OVER () FROM (SELECT DISTINCT document_id FROM {parts} WHERE document_id IS NOT NULL)
            WHERE document_id NOT IN (SELECT key FROM read_{signal.name}) ORDER BY document_id LIMIT 10
        """).fetchall()
        if rows:
            raise ConfigError(
                f"selection.signals {signal.name}: {rows[0][1]} documents of the candidates have no value (document_id "
                f"{list_offenders([row[0] for row in rows], rows[0][1])}); add rows for them, or give the signal a default: missing"
            )


def open_signals(
    connection: duckdb.DuckDBPyConnection,
    storage: Storage,
    corpus: CorpusManifest,
    model_id: str,
    config: SelectionConfig,
    on_progress: ProgressCallback = ignore_progress,
) -> Signals:
    """The signals of all candidates. Raises as `Signals`, and `ScoreError` where a signal is by document and the scores of documents,
    which know their parts, are missing."""

    def list_parts() -> str:
        states = check_score_shards(storage, corpus, model_id)
        check_document_scores(storage, corpus, f"{model_id}'s", [state.manifest for state in states])
        shards = corpus.split_shards("candidate")
        return scan_parquet(storage, [layout.document_scores(shard.corpus_id, model_id, shard.shard_index) for shard in shards])

    return Signals(connection, storage, corpus, config, list_parts, on_progress)


def _table(signal: SignalConfig) -> str:
    return f"signal_{signal.name}"
