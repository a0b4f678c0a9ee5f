"""A selection of whole documents: ranked by their own scores, and published by the candidate shards that they lie in.

The documents' rows are a table of DuckDB, which spills to the disk; they are read twice in the order of their ids, as candidate
sequences are: to know the keys, and to keep what lies above the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from miniplm.config.selection import SelectionConfig
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, ShardEntry
from miniplm.records.selections import SelectionShardEntry
from miniplm.selection.candidates import Floats, Integers
from miniplm.selection.cut import STEERED_COLUMNS, Cut, KeptDomains
from miniplm.selection.documents import document_scores, rank_documents
from miniplm.selection.exclusions import ExcludedIds
from miniplm.selection.expressions import Expressions
from miniplm.selection.kept import publish_kept
from miniplm.selection.keys import RankingKeys, make_keys
from miniplm.selection.order_statistics import GroupedRuns, ScratchFile
from miniplm.selection.prefixes import RankedRows
from miniplm.selection.signals import Signals, open_signals
from miniplm.selection.steering import check_rule, list_columns
from miniplm.selection.survey import ShardSums, Survey, add_sums, sum_by
from miniplm.storage.root import Storage

_BLOCK_ROWS = 1 << 18
_COLUMNS = (
    "document_id",
    "first_sequence_id",
    "last_sequence_id",
    "num_tokens",
    "teacher_nll",
    "reference_nll",
    "difference_score",
)
_MORE_COLUMNS = ("num_scored_tokens", "num_sequences", "teacher_nll_sum", "reference_nll_sum")

DOCUMENT_SELECTION_SCHEMA = pa.schema(
    [
        ("document_id", pa.int64()),
        ("first_sequence_id", pa.int64()),
        ("last_sequence_id", pa.int64()),
        ("num_tokens", pa.int64()),
        ("teacher_nll", pa.float64()),
        ("reference_nll", pa.float64()),
        ("difference_score", pa.float64()),
    ]
)


@dataclass(frozen=True)
class _Block:
    """Documents in the order of their ids: places of domains in `Survey.domains`, ranking keys, NaN where one is left out, the value of
    the expression where one is the score, and their columns, (num_documents,) each; `left_out` counts those by reason."""

    domains: Integers
    keys: Floats
    expression: Floats | None
    columns: dict[str, Any]
    left_out: dict[str, int]


@dataclass
class DocumentSurvey(Survey):
    """What is known of all documents, as `Survey` of sequences; `connection` has them as `ranked_documents`."""

    connection: duckdb.DuckDBPyConnection | None = None
    expressions: Expressions | None = None
    signals: Signals | None = None
    excluded: Sequence[ExcludedIds] = ()

    @property
    def ranked(self) -> RankedRows:
        return RankedRows(self.domains, self.num_ranked, self.ranked_tokens, self.key_runs, self._read_rows)

    def _read_rows(self) -> Iterator[tuple[Integers, Integers, Floats]]:
        """Domain, tokens and key of the documents of each block, (num_documents,) each."""
        for block in self.read_blocks():
            yield block.domains, block.columns["num_tokens"], block.keys

    def read_blocks(self) -> Iterator[_Block]:
        """All documents, by id."""
        assert self.connection is not None
        config = self.keys.config
        # A cursor, as what is kept is written to the same database meanwhile.
        cursor = self.connection.cursor()
        names = pa.array(self.domains, pa.string())
        more = _MORE_COLUMNS if self.expressions is not None else ()
        query = f"SELECT domain, {', '.join((*_COLUMNS, *more))} FROM ranked_documents"
        for batch in cursor.sql(query).to_arrow_reader(_BLOCK_ROWS):
            columns = {name: batch[name].to_numpy() for name in (*_COLUMNS, *more)}
            places = pc.index_in(batch["domain"].cast(pa.string()), names).to_numpy()
            expression, is_met = (None, None) if self.expressions is None else self._evaluate(batch, columns)
            scores = columns["difference_score"].astype(np.float64) if expression is None else expression
            dropped = [(one.reason, np.isin(columns["document_id"], one.ids)) for one in self.excluded]
            keys, left_out = make_keys(config, columns["document_id"], scores, is_met, dropped)
            yield _Block(places, keys, expression, columns, left_out)

    def _evaluate(self, batch: pa.RecordBatch, columns: dict[str, Any]) -> tuple[Floats | None, NDArray[np.bool_] | None]:
        """The expression and the condition of documents with these columns (num_documents,) by name."""
        assert self.expressions is not None
        values = columns | {"domain": batch["domain"].cast(pa.string())}
        if self.signals is not None:
            values |= self.signals.read_values(columns["document_id"])
        schema = list_columns(self.keys.config)
        return self.expressions.evaluate(pa.table({name: values[name] for name in schema.names}, schema=schema))


def survey_documents(
    connection: duckdb.DuckDBPyConnection,
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    config: SelectionConfig,
    scratch: ScratchFile,
    excluded: Sequence[ExcludedIds] = (),
    on_progress: ProgressCallback = ignore_progress,
) -> DocumentSurvey:
    """Adds up the scores of every document's parts. Raises as `check_rule`, `document_scores` and `rank_documents`, and for values of
    signals that cannot be used."""
    check_rule(config)
    on_progress(Progress("add up documents", 0, 2, "steps"))
    document_scores(connection, storage, corpus, teacher_id, reference_id, config.difference)
    on_progress(Progress("add up documents", 1, 2, "steps"))
    num_unknown = rank_documents(connection, storage, corpus, teacher_id)
    rows = connection.execute("SELECT DISTINCT domain FROM ranked_documents ORDER BY domain").fetchall()
    runs, keys = GroupedRuns(scratch), RankingKeys(config, exclusions=excluded)
    survey = DocumentSurvey(
        keys,
        runs,
        runs if keys.are_differences else GroupedRuns(scratch),
        {},
        [row[0] for row in rows],
        connection=connection,
        expressions=Expressions(config, list_columns(config)) if config.has_expressions else None,
        signals=open_signals(connection, storage, corpus, teacher_id, config, on_progress) if config.signals else None,
        excluded=excluded,
    )
    for block in survey.read_blocks():
        num_tokens, difference = block.columns["num_tokens"], block.columns["difference_score"]
        ranked = ~np.isnan(block.keys)
        weights = num_tokens[ranked] if config.has_token_budget else None
        survey.key_runs.add(block.domains[ranked], block.keys[ranked], weights)
        if survey.runs is not survey.key_runs:
            survey.runs.add(block.domains, difference)
        add_sums(survey, _sum_block(block, len(rows)))
    survey.runs.finish()
    survey.key_runs.finish()
    if num_unknown:
        survey.left_out["unknown parts"] = num_unknown
    on_progress(Progress("add up documents", 2, 2, "steps"))
    return survey


def _sum_block(block: _Block, num_domains: int) -> ShardSums:
    num_tokens, ranked = block.columns["num_tokens"], ~np.isnan(block.keys)
    return ShardSums(
        domains=np.arange(num_domains),
        num_sequences=np.bincount(block.domains, minlength=num_domains),
        num_tokens=sum_by(block.domains, num_tokens, num_domains).astype(np.int64),
        teacher_nll=sum_by(block.domains, block.columns["teacher_nll"], num_domains),
        reference_nll=sum_by(block.domains, block.columns["reference_nll"], num_domains),
        num_ranked=np.bincount(block.domains[ranked], minlength=num_domains),
        ranked_tokens=sum_by(block.domains[ranked], num_tokens[ranked], num_domains).astype(np.int64),
        num_negative=int(np.count_nonzero(block.columns["difference_score"] < 0)),
        left_out={reason: number for reason, number in block.left_out.items() if number},
    )


def publish_documents(
    storage: Storage,
    corpus: CorpusManifest,
    survey: DocumentSurvey,
    selection_id: str,
    cut: Cut,
    kept_domains: KeptDomains,
    on_progress: ProgressCallback,
) -> Iterator[SelectionShardEntry]:
    """Publishes for each candidate shard the kept documents that begin in it or before and end in it or later; counts are of those that begin in it."""
    shards = corpus.split_shards("candidate")
    kept = _Kept(_list_kept(survey, cut, kept_domains))
    for done, shard in enumerate(shards, start=1):
        table = kept.take(shard)
        begins = table["first_sequence_id"].to_numpy() >= shard.first_sequence_id
        num_tokens = table["num_tokens"].to_numpy()[begins]
        yield publish_kept(storage, selection_id, shard, table, table.filter(pa.array(begins)), num_tokens)
        on_progress(Progress("select", done, len(shards), "shards"))


def _list_kept(survey: DocumentSurvey, cut: Cut, kept_domains: KeptDomains) -> pa.RecordBatchReader:
    """What is kept, in the order of first sequences and, in one, of ids."""
    assert survey.connection is not None
    columns = {**dict.fromkeys(_COLUMNS[:4], "BIGINT"), **dict.fromkeys(_COLUMNS[4:], "DOUBLE")}
    if survey.keys.config.is_expression:
        columns["score"] = "DOUBLE"
    if survey.keys.config.temperature:
        columns["ranking_key"] = "DOUBLE"
    if cut.num_passes:
        columns["repetitions"] = "INTEGER"
    described = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    survey.connection.execute(f"CREATE OR REPLACE TABLE kept_documents ({described})")
    for block in survey.read_blocks():
        rows, repetitions = cut.find_uses(block.domains, block.keys)
        found = block.columns | {"ranking_key": block.keys, "score": block.expression}
        kept_domains.add(block.domains[rows], found["num_tokens"][rows], found["difference_score"][rows])
        batch = pa.table({name: repetitions if name == "repetitions" else found[name][rows] for name in columns})
        survey.connection.register("kept_batch", batch)
        survey.connection.execute("INSERT INTO kept_documents SELECT * FROM kept_batch")
        survey.connection.unregister("kept_batch")
    return survey.connection.sql("SELECT * FROM kept_documents ORDER BY first_sequence_id, document_id").to_arrow_reader(
        _BLOCK_ROWS
    )


class _Kept:
    """Kept documents in the order of their first sequences, taken shard by shard; those that go on stay for the next."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._reader = reader
        extra = [STEERED_COLUMNS[name] for name in reader.schema.names if name not in DOCUMENT_SELECTION_SCHEMA.names]
        self._schema = pa.schema([*DOCUMENT_SELECTION_SCHEMA, *extra])
        self._waiting = self._schema.empty_table()
        self._is_read = False

    def take(self, shard: ShardEntry) -> pa.Table:
        """The documents that begin in a shard or before and end in it or later; the next shard is asked for after those before."""
        first, stop = shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences
        while not self._is_read and (not len(self._waiting) or self._waiting["first_sequence_id"][-1].as_py() < stop):
            try:
                batch = pa.Table.from_batches([self._reader.read_next_batch()]).cast(self._schema)
                self._waiting = pa.concat_tables([self._waiting, batch])
            except StopIteration:
                self._is_read = True
        begun = self._waiting["first_sequence_id"].to_numpy() < stop
        here = self._waiting.filter(pa.array(begun & (self._waiting["last_sequence_id"].to_numpy() >= first)))
        self._waiting = self._waiting.filter(pa.array(self._waiting["last_sequence_id"].to_numpy() >= stop))
        return here.combine_chunks()
