"""Difference scores of documents: those of their parts in candidate sequences, added up in DuckDB."""

from __future__ import annotations

import duckdb

from miniplm import layout
from miniplm.errors import CorpusError, ScoreError, ScoreJoinError, list_offenders
from miniplm.records.manifests import CorpusManifest, ScoreShardManifest
from miniplm.scoring.shards import check_score_shards
from miniplm.selection.scans import scan_parquet
from miniplm.storage.root import Storage


def document_scores(
    connection: duckdb.DuckDBPyConnection,
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    score: str = "mean",
) -> int:
    """Creates the table `document_scores`, one row a document that has tokens among the candidates, NLLs in nats a scored token:

        document_id, domain, first_sequence_id, last_sequence_id, num_sequences, num_scored_tokens, teacher_nll, reference_nll,
        difference_score

    with the difference score as in `candidate_scores`. Returns in how many sequences it is not known which document a part is of;
    they are in no row. Raises `ScoreError` where the scores of documents are missing or damaged, and `ScoreJoinError` where the two
    models scored other tokens of a document.
    """
    shards = corpus.split_shards("candidate")
    num_unattributed = 0
    for role, model_id in (("teacher", teacher_id), ("reference", reference_id)):
        manifests = [state.manifest for state in check_score_shards(storage, corpus, model_id)]
        num_unattributed = check_document_scores(storage, corpus, role, manifests)
        files = scan_parquet(storage, [layout.document_scores(shard.corpus_id, model_id, shard.shard_index) for shard in shards])
        # A document may lie in several sequences. Their order is fixed, as a sum of floats depends on it in its last bits.
        connection.execute(f"""
            CREATE OR REPLACE TEMP TABLE {role}_documents AS
            SELECT document_id, min(sequence_id) AS first_sequence_id, max(sequence_id) AS last_sequence_id, count(*) AS num_sequences,
                   sum(num_scored_tokens)::BIGINT AS num_scored_tokens, list_sum(list(nll_sum ORDER BY sequence_id)) AS nll_sum
            FROM {files} WHERE document_id IS NOT NULL GROUP BY document_id
        """)
    _check_same_tokens(connection)
    candidates = scan_parquet(storage, [layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index) for shard in shards])
    tokens = "greatest(t.num_scored_tokens, 1)"
    difference = "r.nll_sum - t.nll_sum" if score == "sum" else f"r.nll_sum / {tokens} - t.nll_sum / {tokens}"
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE document_scores AS
        SELECT t.document_id, c.domain::VARCHAR AS domain, t.first_sequence_id, t.last_sequence_id, t.num_sequences,
               t.num_scored_tokens, t.nll_sum / {tokens} AS teacher_nll, r.nll_sum / {tokens} AS reference_nll, {difference} AS difference_score
        FROM teacher_documents t JOIN reference_documents r USING (document_id)
        JOIN {candidates} c ON c.sequence_id = t.first_sequence_id
    """)
    return num_unattributed


def rank_documents(connection: duckdb.DuckDBPyConnection, storage: Storage, corpus: CorpusManifest, teacher_id: str) -> int:
    """Creates `ranked_documents` of `document_scores`, by `document_id`: its columns, `num_tokens`, EOS included, and the
    NLL sums of both models. Cursors see it too.

    What is not known of a document makes it no candidate: those of sequences in which an EOS hides which part is whose are in no
    row; returns their number. Raises `CorpusError` where the documents' tokens are not those of the corpus.
    """
    shards = corpus.split_shards("candidate")
    parts = scan_parquet(storage, [layout.document_scores(shard.corpus_id, teacher_id, shard.shard_index) for shard in shards])
    candidates = scan_parquet(storage, [layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index) for shard in shards])
    # Of a part all tokens are scored but the first: a sequence's first is no target, and what comes after an EOS is not scored.
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE document_sizes AS
        SELECT d.document_id, sum(CASE WHEN len(c.document_ids) = 1 THEN c.num_tokens ELSE d.num_scored_tokens + 1 END)::BIGINT AS num_tokens
        FROM {parts} d JOIN {candidates} c USING (sequence_id) WHERE d.document_id IS NOT NULL GROUP BY d.document_id
    """)
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE unknown_documents AS
        SELECT DISTINCT unnest(c.document_ids) AS document_id
        FROM {parts} d JOIN {candidates} c USING (sequence_id) WHERE d.document_id IS NULL
    """)
    connection.execute("""
        CREATE OR REPLACE TABLE ranked_documents AS
        SELECT d.*, s.num_tokens, t.nll_sum AS teacher_nll_sum, r.nll_sum AS reference_nll_sum
        FROM document_scores d JOIN document_sizes s USING (document_id)
        JOIN teacher_documents t USING (document_id) JOIN reference_documents r USING (document_id)
        WHERE NOT EXISTS (FROM unknown_documents u WHERE u.document_id = d.document_id) ORDER BY document_id
    """)
    (num_unknown,) = _fetch_one(connection, "SELECT count(*) FROM unknown_documents")
    (num_tokens,) = _fetch_one(connection, "SELECT coalesce(sum(num_tokens), 0) FROM document_sizes")
    expected = sum(shard.num_tokens for shard in shards)
    if not num_unknown and num_tokens != expected:
        raise CorpusError(
            f"the documents of corpus {corpus.corpus_id} have {num_tokens:,} tokens by their scores, its candidate shards {expected:,}; "
            "score it again with `miniplm score CONFIG --again`"
        )
    return num_unknown


def _fetch_one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[int, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(int(value) for value in row)


def check_document_scores(storage: Storage, corpus: CorpusManifest, role: str, manifests: list[ScoreShardManifest | None]) -> int:
    """Raises `ScoreError` where a shard's scores of documents are not there or are damaged; the sequences without known parts."""
    missing, num_unattributed = [], 0
    for shard, manifest in zip(corpus.split_shards("candidate"), manifests, strict=True):
        entry = None if manifest is None else manifest.documents
        if manifest is None or entry is None:
            missing.append(layout.shard_name(shard.shard_index))
        elif not storage.holds(layout.document_scores(shard.corpus_id, manifest.model_id, shard.shard_index), entry.digest):
            missing.append(f"{layout.shard_name(shard.shard_index)} (damaged)")
        else:
            num_unattributed += entry.num_unattributed
    if missing:
        raise ScoreError(
            f"{len(missing)} shards have no {role} scores of their documents: {list_offenders(missing)}. "
            "`miniplm score CONFIG --documents` makes them"
        )
    return num_unattributed


def _check_same_tokens(connection: duckdb.DuckDBPyConnection) -> None:
    rows = connection.execute("""
        SELECT document_id FROM teacher_documents t FULL JOIN reference_documents r USING (document_id)
        WHERE t.num_scored_tokens IS DISTINCT FROM r.num_scored_tokens ORDER BY document_id
    """).fetchall()
    if rows:
        raise ScoreJoinError(
            f"{len(rows)} documents have other scored tokens under the teacher than under the reference: "
            f"{list_offenders([row[0] for row in rows])}. Run `miniplm score CONFIG --again`"
        )
