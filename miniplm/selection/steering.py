"""The ranking keys of a selection with what they need from outside: expressions that are checked, signals that are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.errors import ConfigError
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest
from miniplm.selection.connection import connect
from miniplm.selection.expressions import COLUMNS, DOCUMENT_COLUMNS, Expressions
from miniplm.selection.keys import Evaluate, Exclusion, RankingKeys, ShardRows
from miniplm.selection.signals import Signals, digest_signals, find_signal_files, open_signals
from miniplm.storage.root import Storage


def check_rule(config: SelectionConfig) -> None:
    """Raises `ConfigError` where an expression is not allowed, a signal's files are not there or have other columns, or is of another unit."""
    if config.unit == "document":
        check_document_rule(config)
    if config.has_expressions:
        Expressions(config, list_columns(config))
    for signal in config.signals:
        find_signal_files(signal)


def check_document_rule(config: SelectionConfig) -> None:
    """Raises `ConfigError` for what is of sequences alone."""
    for signal in config.signals:
        if signal.key == "sequence_id":
            raise ConfigError(
                f"selection.signals {signal.name} has values by sequence, and documents are ranked; give it a key document_id or text_digest"
            )


def resolve_rule(storage: Storage, config: SelectionConfig) -> dict[str, Any]:
    """All that steers a selection beside ratio, score and within, by content: what ids and manifests tell of it; empty for the published rule."""
    rule = config.describe_rule()
    if config.signals:
        rule["signals"] = digest_signals(storage, config.signals)
    return rule


def list_columns(config: SelectionConfig) -> pa.Schema:
    """What the expressions of a selection may name."""
    columns = DOCUMENT_COLUMNS if config.unit == "document" else COLUMNS
    return pa.schema([*columns, *(pa.field(signal.name, pa.float64()) for signal in config.signals)])


@contextmanager
def open_keys(
    storage: Storage,
    corpus: CorpusManifest,
    model_id: str,
    config: SelectionConfig,
    exclusions: Sequence[Exclusion] = (),
    on_progress: ProgressCallback = ignore_progress,
) -> Iterator[RankingKeys]:
    """What makes the keys of any shard, while it is open; a document's part of a sequence is looked up in the scores of `model_id`. Raises as `check_rule`, and for values of signals that cannot be used."""
    with ExitStack() as stack:
        signals = None
        if config.signals:
            signals = open_signals(stack.enter_context(connect(storage)), storage, corpus, model_id, config, on_progress)
        yield RankingKeys(config, _make_evaluate(config, signals), exclusions)


def _make_evaluate(config: SelectionConfig, signals: Signals | None) -> Evaluate | None:
    if not config.has_expressions:
        return None
    expressions = Expressions(config, list_columns(config))

    def evaluate(rows: ShardRows) -> Any:
        columns = list_values(rows)
        if signals is not None:
            columns |= signals.read_values(rows.sequence_ids, f" of {layout.shard_name(rows.shard.shard_index)}")
        return expressions.evaluate(pa.table(columns, schema=list_columns(config)))

    return evaluate


def list_values(rows: ShardRows) -> dict[str, Any]:
    """The columns of `COLUMNS` for the rows of a shard, (num_sequences,) each."""
    sequences, scores = rows.sequences, rows.scores
    domains = pa.DictionaryArray.from_arrays(
        pa.array(sequences.domains.astype("int32")), pa.array(sequences.domain_names, pa.string())
    )
    return {
        "sequence_id": rows.sequence_ids,
        "domain": domains.cast(pa.string()),
        "num_tokens": sequences.num_tokens.astype("int64"),
        "num_scored_tokens": scores.num_scored_tokens.astype("int64"),
        "teacher_nll": scores.teacher_nll,
        "reference_nll": scores.reference_nll,
        "difference_score": scores.difference_score("mean"),
        "teacher_nll_sum": scores.teacher_nll_sum,
        "reference_nll_sum": scores.reference_nll_sum,
    }
