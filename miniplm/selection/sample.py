"""Some of the candidates, with what a rule asks of them, so that it can be applied to them as if they were all.

Shapes: N sequences of the sample, in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from miniplm.config.selection import SelectionConfig
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.records.manifests import CorpusManifest
from miniplm.selection.candidates import read_sequences
from miniplm.selection.connection import connect
from miniplm.selection.signals import Signals
from miniplm.storage.root import Storage

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_PARTS_SCHEMA = pa.schema([("sequence_id", pa.int64()), ("document_id", pa.int64()), ("num_scored_tokens", pa.int64())])


@dataclass(frozen=True)
class Sample:
    """Sequences of a corpus: ids, names of domains and scored tokens (N,) each; `num_tokens` and `signals` (N,) where a rule asks for them.

    `domain_tokens` are the tokens of all candidates by domain, for which those of the sample stand.
    """

    sequence_ids: Integers
    domains: Sequence[str]
    num_scored_tokens: Integers
    num_tokens: Integers | None = None
    domain_tokens: Mapping[str, int] = field(default_factory=dict)
    signals: Mapping[str, Floats] = field(default_factory=dict)


def read_sample(
    storage: Storage,
    corpus: CorpusManifest,
    rule: SelectionConfig,
    sample: Sample,
    drawn: CorpusManifest | None = None,
    drawn_ids: Integers | None = None,
) -> Sample:
    """The sample with what the rule asks of it beside its scores: lengths, domains and their tokens, and signals; by the published rule nothing is read.

    Where its sequences lie in another corpus, `drawn`, too, `drawn_ids` (N,) are their ids in that, which is read then. Raises
    `CorpusError` where it is damaged, and `ConfigError` as `Signals`.
    """
    if not (rule.has_token_budget or rule.has_expressions):
        return sample
    source, ids = (corpus, sample.sequence_ids) if drawn is None or drawn_ids is None else (drawn, drawn_ids)
    counts = {name: domain.num_tokens for name, domain in corpus.domains.get("candidate", {}).items()}
    signals = _read_signals(storage, corpus, rule, source, ids, sample.sequence_ids) if rule.signals else {}
    # Domains too: what was measured before they were noted has none.
    domains, lengths = _read_sequences(storage, source, ids)
    return Sample(sample.sequence_ids, domains, sample.num_scored_tokens, lengths, counts, signals)


def _list_rows(corpus: CorpusManifest, ids: Integers) -> list[tuple[Any, Integers, Integers]]:
    """Candidate shards that hold some of the ids (num_ids,): with the places of these among the ids, and the rows in the shard."""
    found = []
    for shard in corpus.split_shards("candidate"):
        rows = ids - shard.first_sequence_id
        places = np.flatnonzero((rows >= 0) & (rows < shard.num_sequences))
        if len(places):
            found.append((shard, places, rows[places]))
    return found


def _read_sequences(storage: Storage, corpus: CorpusManifest, ids: Integers) -> tuple[list[str], Integers]:
    """Domains and tokens of sequences (num_ids,)."""
    domains, lengths = np.full(len(ids), "", dtype=object), np.zeros(len(ids), dtype=np.int64)
    for shard, places, rows in _list_rows(corpus, ids):
        found = read_sequences(storage, shard)
        domains[places] = np.array(found.domain_names, dtype=object)[found.domains[rows]]
        lengths[places] = found.num_tokens[rows]
    return domains.tolist(), lengths


def _read_signals(
    storage: Storage, corpus: CorpusManifest, rule: SelectionConfig, source: CorpusManifest, ids: Integers, sequence_ids: Integers
) -> dict[str, Floats]:
    """The signals of sequences (N,), which have `ids` (N,) in the corpus that they are read from; of documents those parts count that lie in these."""
    with connect(storage) as connection:

        def list_parts() -> str:
            connection.register("sample_parts", _read_parts(storage, source, ids, sequence_ids))
            return "sample_parts"

        signals = Signals(connection, storage, corpus, rule, list_parts)
        found = {name: np.zeros(len(ids)) for name in (signal.name for signal in rule.signals)}
        # Shard by shard, as all values between two ids are read.
        for _, places, _ in _list_rows(corpus, sequence_ids):
            for name, values in signals.read_values(sequence_ids[places], " of the sample").items():
                found[name][places] = values
        return found


def _read_parts(storage: Storage, corpus: CorpusManifest, ids: Integers, sequence_ids: Integers) -> pa.Table:
    """Documents' parts of sequences (N,) with their scored tokens, as scoring counts them: all but the first of a part."""
    eos_token_id = corpus.tokenizer.eos_token_id
    parts: list[tuple[int, int | None, int]] = []
    for shard, places, rows in _list_rows(corpus, ids):
        table = read_shard(storage, shard, ["document_ids", "token_ids"]).take(pa.array(rows))
        sequences = zip(sequence_ids[places].tolist(), table["document_ids"].to_pylist(), read_token_ids(table), strict=True)
        for sequence_id, document_ids, token_ids in sequences:
            ends = np.flatnonzero(token_ids[:-1] == eos_token_id) + 1
            sizes = np.diff(np.concatenate([[0], ends, [len(token_ids)]])) - 1
            if len(document_ids) == 1:
                parts.append((sequence_id, document_ids[0], int(sizes.sum())))
            elif len(document_ids) == len(sizes):
                parts += [(sequence_id, one, size) for one, size in zip(document_ids, sizes.tolist(), strict=True)]
            else:  # an EOS in a text hides whose a part is
                parts.append((sequence_id, None, int(sizes.sum())))
    columns = list(zip(*parts, strict=True)) if parts else [()] * len(_PARTS_SCHEMA)
    return pa.table(
        [pa.array(column, kind.type) for column, kind in zip(columns, _PARTS_SCHEMA, strict=True)], schema=_PARTS_SCHEMA
    )
