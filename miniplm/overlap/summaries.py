"""What was kept of copies and of evaluation texts, against all candidates: counted in DuckDB, with the texts that say most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miniplm import layout
from miniplm.corpus.reader import load_corpus_tokenizer, read_shard
from miniplm.overlap.contamination import read_items, read_matches
from miniplm.overlap.copies import read_copies
from miniplm.overlap.evaluation_texts import decode_document
from miniplm.records.manifests import CorpusManifest
from miniplm.records.overlap import (
    ContaminationManifest,
    ContaminationSummary,
    CopiedGroup,
    CopiedShare,
    CopiesManifest,
    CopiesSummary,
    FoundSource,
    FoundText,
)
from miniplm.records.selections import SelectionManifest
from miniplm.selection.connection import connect
from miniplm.selection.scans import scan_parquet
from miniplm.storage.root import Storage

_MOST_GROUPS = 5
_MOST_TEXTS = 20
_SHOWN_CHARACTERS = 300


def summarise_copies(
    storage: Storage,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    manifest: CopiesManifest,
    trust_remote_code: bool = False,
) -> CopiesSummary:
    """Copies among the kept sequences or documents. Raises `CorpusError` where a file is missing or damaged."""
    with connect(storage) as connection:
        connection.register("copy_rows", read_copies(storage, manifest))
        kept = _scan_kept(storage, selection)
        connection.execute(f"""
            CREATE TABLE copies AS SELECT *, {selection.unit}_id IN (SELECT {selection.unit}_id FROM {kept}) AS is_kept FROM copy_rows
        """)
        candidate_tokens = sum(shard.num_tokens for shard in corpus.split_shards("candidate"))
        groups = connection.execute(f"""
            SELECT group_id, count(DISTINCT document_id), count(DISTINCT document_id) FILTER (is_kept) AS num_kept
            FROM copies GROUP BY group_id HAVING num_kept > 0 ORDER BY num_kept DESC, group_id LIMIT {_MOST_GROUPS}
        """).fetchall()
        shown = [(int(group), _find_sequence(connection, int(group))) for group, _, _ in groups]
        texts = _read_starts(storage, corpus, shown, trust_remote_code)
        return CopiesSummary(
            kept=_count_share(connection, "is_kept", selection.num_selected_tokens),
            candidates=_count_share(connection, "true", candidate_tokens),
            num_crowded=manifest.num_crowded,
            groups=tuple(
                CopiedGroup(document_id=group, num_documents=num_documents, num_kept=num_kept, text=text)
                for (group, num_documents, num_kept), text in zip(groups, texts, strict=True)
            ),
        )


def _scan_kept(storage: Storage, selection: SelectionManifest) -> str:
    return scan_parquet(storage, [layout.selection_shard(selection.selection_id, shard.shard_index) for shard in selection.shards])


def _count_share(connection: duckdb.DuckDBPyConnection, condition: str, num_tokens: int) -> CopiedShare:
    row = connection.execute(f"""
        WITH here AS (
            SELECT document_id, text_id, group_id, sum(num_tokens) AS num_tokens FROM copies WHERE {condition} GROUP BY ALL
        ), counted AS (
            SELECT *, count(*) OVER (PARTITION BY text_id) > 1 AS is_exact, count(*) OVER (PARTITION BY group_id) > 1 AS is_copy FROM here
        ), groups AS (
            SELECT sum(num_tokens) - max(num_tokens) AS repeated FROM here GROUP BY group_id
        )
        SELECT count(*) FILTER (is_exact), count(*) FILTER (is_copy AND NOT is_exact),
               (SELECT coalesce(sum(repeated), 0)::BIGINT FROM groups) FROM counted
    """).fetchone()
    assert row is not None
    return CopiedShare(num_exact=row[0], num_near=row[1], repeated_tokens=row[2], num_tokens=num_tokens)


def _find_sequence(connection: duckdb.DuckDBPyConnection, document_id: int) -> int:
    """The first sequence that holds a part of a document with copies."""
    rows = connection.execute("SELECT min(sequence_id) FROM copies WHERE document_id = ?", [document_id]).fetchall()
    return int(rows[0][0])


def _read_starts(
    storage: Storage, corpus: CorpusManifest, documents: Sequence[tuple[int, int]], trust_remote_code: bool
) -> list[str]:
    """The beginnings of documents, given with their first sequences."""
    if not documents:
        return []
    tokenizer = load_corpus_tokenizer(storage, corpus.corpus_id, trust_remote_code, only_decodes=True)
    texts = []
    for document_id, sequence_id in documents:
        shard = next(
            shard
            for shard in corpus.split_shards("candidate")
            if shard.first_sequence_id <= sequence_id < shard.first_sequence_id + shard.num_sequences
        )
        table = read_shard(storage, shard, columns=["sequence_id", "document_ids", "token_ids"], verify=False)
        row = table.filter(pc.equal(table["sequence_id"], sequence_id)).to_pylist()[0]
        text = decode_document(tokenizer, _cut_document(row, document_id, tokenizer.eos_token_id))
        texts.append(text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…")
    return texts


def _cut_document(row: dict[str, Any], document_id: int, eos_token_id: int) -> Any:
    """The token ids (num_tokens,) of a sequence that are of a document: it comes after so many EOS as documents are before it."""
    token_ids = np.array(row["token_ids"])
    bounds = [0, *(np.flatnonzero(token_ids == eos_token_id) + 1).tolist(), len(token_ids)]
    place = min(row["document_ids"].index(document_id), len(bounds) - 2)
    return token_ids[bounds[place] : bounds[place + 1]]


def summarise_contamination(
    storage: Storage, selection: SelectionManifest, manifest: ContaminationManifest
) -> ContaminationSummary:
    """Evaluation texts in the kept sequences or documents. Raises `CorpusError` where a file is missing or damaged."""
    matches = pa.concat_tables([read_matches(storage, manifest, entry) for entry in manifest.shards])
    with connect(storage) as connection:
        connection.register("match_rows", matches)
        connection.register("items", read_items(storage, manifest))
        connection.execute(f"""
            CREATE TABLE matches AS SELECT m.*, source, place, items.text AS item_text,
                   {selection.unit}_id IN (SELECT {selection.unit}_id FROM {_scan_kept(storage, selection)}) AS is_kept
            FROM match_rows m JOIN items USING (item)
        """)
        counts = connection.execute("""
            SELECT source, count(DISTINCT item), count(DISTINCT item) FILTER (is_kept) FROM matches GROUP BY source
        """).fetchall()
        found = {source: (num_found, num_kept) for source, num_found, num_kept in counts}
        sequences = connection.execute(
            "SELECT count(DISTINCT sequence_id), count(DISTINCT sequence_id) FILTER (is_kept) FROM matches"
        ).fetchall()[0]
        names = ("source", "place", "sequence_id", "document_id", "num_words", "is_kept", "text", "item_text")
        rows = connection.execute(
            f"SELECT {', '.join(names)} FROM matches ORDER BY is_kept DESC, num_words DESC, sequence_id, document_id, text LIMIT {_MOST_TEXTS}"
        ).fetchall()
    return ContaminationSummary(
        contamination_id=manifest.contamination_id,
        sources=tuple(
            FoundSource(
                name=source.name,
                num_items=source.num_items,
                num_short=source.num_short,
                num_found=found.get(source.name, (0, 0))[0],
                num_found_kept=found.get(source.name, (0, 0))[1],
            )
            for source in manifest.sources
        ),
        num_sequences=int(sequences[0]),
        num_kept=int(sequences[1]),
        texts=tuple(FoundText(**dict(zip(names, row, strict=True))) for row in rows),
    )
