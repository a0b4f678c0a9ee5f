"""Difference Sampling: keeps the floor(ratio * candidates) sequences with the largest difference score (MiniPLM, section 2)."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.config.run import SelectionConfig
from miniplm.errors import CorpusError, ScoreJoinError
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, DomainSelection, SelectionManifest, SelectionShardEntry
from miniplm.records.stored import find_record
from miniplm.selection.join import candidate_scores, check_scores, connect
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage, digest_content, digest_file

# Raised when a change of the code changes what is selected of unchanged scores.
SELECTION_VERSION = 1

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

SELECTION_SCHEMA = pa.schema(
    [
        ("sequence_id", pa.int64()),
        ("teacher_nll", pa.float64()),
        ("reference_nll", pa.float64()),
        ("difference_score", pa.float64()),
    ]
)


def count_selected(num_candidates: int, ratio: float) -> int:
    """floor(ratio * num_candidates), with the ratio as it is written: 0.29 of 100 is 29, where floats give 28."""
    return int((Decimal(repr(ratio)) * num_candidates).to_integral_value(ROUND_FLOOR))


def resolve_selection_id(
    storage: Storage, corpus: CorpusManifest, teacher_id: str, reference_id: str, config: SelectionConfig
) -> str:
    """The id of a selection, made of the digests of all the scores that go into it, the ratio, the kind of score and what it ranks within.

    Raises `ScoreJoinError` as `check_scores`.
    """
    digests = check_scores(storage, corpus, teacher_id, reference_id)
    content = [SELECTION_VERSION, corpus.corpus_id, teacher_id, reference_id, digests, repr(config.ratio), config.score]
    if config.within == "corpus":
        return f"{config.score}-{config.ratio:g}-{digest_content(content)}"
    return f"{config.score}-{config.ratio:g}-by-{config.within}-{digest_content([*content, config.within])}"


def find_selection(storage: Storage, selection_id: str) -> SelectionManifest | None:
    """The selection where it is there, whole: its manifest and every file with the digest that the manifest says."""
    manifest = find_record(storage, layout.selection_manifest(selection_id), SelectionManifest)
    if manifest is None:
        return None
    shards = [(layout.selection_shard(selection_id, shard.shard_index), shard.digest) for shard in manifest.shards]
    return manifest if all(storage.holds(path, digest) for path, digest in shards) else None


def load_selection(storage: Storage, selection_id: str) -> SelectionManifest:
    """The selection; `CorpusError` where it is not there or not whole."""
    manifest = find_selection(storage, selection_id)
    if manifest is None:
        raise CorpusError(f"selection {selection_id} is not at {storage.root}, or damaged; make it with `miniplm select CONFIG`")
    return manifest


def select_sequences(
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    config: SelectionConfig,
    on_progress: ProgressCallback = ignore_progress,
) -> SelectionManifest:
    """Selects the K = floor(ratio * N) candidates with the largest difference score, ties by the smaller sequence id.

    With `within: domain` so many of each domain, N being its candidates; one too small to keep any keeps none.
    Publishes `selections/SELECTION_ID/shard-N.parquet`, one file a candidate shard (`sequence_id` ascending,
    `teacher_nll`, `reference_nll`, `difference_score`, nats), then the manifest. The same inputs give the same
    bytes, and a selection that is there whole is not made again.
    Raises `ScoreJoinError` unless each candidate has exactly one finite score from each model, and `ConfigError`
    where the ratio keeps no sequence at all.
    """
    selection_id = resolve_selection_id(storage, corpus, teacher_id, reference_id, config)
    if (existing := find_selection(storage, selection_id)) is not None:
        return existing
    with exclusive(storage, layout.selection_folder(selection_id), f"selection {selection_id}"), connect(storage) as connection:
        if (existing := find_selection(storage, selection_id)) is not None:  # made by another process meanwhile
            return existing
        storage.delete_temporary_files(layout.selection_folder(selection_id))
        candidate_scores(connection, storage, corpus, teacher_id, reference_id, config.score)
        num_candidates = int(_fetch_one(connection, "SELECT count(*) FROM candidate_scores")[0])
        num_selected = (_rank_within_domains if config.within == "domain" else _rank)(connection, config.ratio)
        if num_selected == 0:
            of_each = " of each domain" if config.within == "domain" else ""
            raise ScoreJoinError(
                f"ratio {config.ratio:g} of {num_candidates} candidate sequences{of_each} keeps none; "
                "use a larger selection.ratio or corpus"
            )
        # It spoke of files that are written anew now; the new one comes after them.
        storage.delete(layout.selection_manifest(selection_id))
        entries = _publish_shards(storage, connection, corpus, selection_id, on_progress)
        num_tokens, threshold = _fetch_one(connection, "SELECT sum(num_tokens), min(difference_score) FROM selected")
        num_negative = _fetch_one(connection, "SELECT count(*) FROM candidate_scores WHERE difference_score < 0")[0]
        manifest = SelectionManifest(
            selection_id=selection_id,
            corpus_id=corpus.corpus_id,
            teacher_id=teacher_id,
            reference_id=reference_id,
            ratio=config.ratio,
            score=config.score,
            within=config.within,
            num_candidates=num_candidates,
            num_selected=num_selected,
            num_selected_tokens=int(num_tokens),
            num_negative=int(num_negative),
            threshold=float(threshold) if config.within == "corpus" else None,
            domains=_summarise_domains(connection),
            shards=entries,
        )
        assert sum(entry.num_sequences for entry in entries) == num_selected
        storage.write_json(layout.selection_manifest(selection_id), manifest.as_json())
        return manifest


def _rank(connection: duckdb.DuckDBPyConnection, ratio: float) -> int:
    """Makes the table `selected`, by sequence id; returns its number of rows."""
    num_selected = count_selected(int(_fetch_one(connection, "SELECT count(*) FROM candidate_scores")[0]), ratio)
    # By both columns: DuckDB's threads give rows in any order, and among equal scores a LIMIT would take whichever came first.
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE selected AS SELECT * FROM (
            SELECT * FROM candidate_scores ORDER BY difference_score DESC, sequence_id ASC LIMIT {num_selected}
        ) ORDER BY sequence_id
    """)
    return num_selected


def _rank_within_domains(connection: duckdb.DuckDBPyConnection, ratio: float) -> int:
    """As `_rank`, for each domain by itself."""
    counts = connection.execute("SELECT domain, count(*) FROM candidate_scores GROUP BY domain ORDER BY domain").fetchall()
    kept = {domain: count_selected(count, ratio) for domain, count in counts}
    connection.execute("CREATE OR REPLACE TEMP TABLE quotas (domain VARCHAR, num_kept BIGINT)")
    connection.executemany("INSERT INTO quotas VALUES (?, ?)", list(kept.items()))
    connection.execute("""
        CREATE OR REPLACE TEMP TABLE selected AS SELECT * EXCLUDE (num_kept) FROM (
            SELECT * FROM candidate_scores JOIN quotas USING (domain)
            QUALIFY row_number() OVER (PARTITION BY domain ORDER BY difference_score DESC, sequence_id ASC) <= num_kept
        ) ORDER BY sequence_id
    """)
    return sum(kept.values())


def _publish_shards(
    storage: Storage,
    connection: duckdb.DuckDBPyConnection,
    corpus: CorpusManifest,
    selection_id: str,
    on_progress: ProgressCallback,
) -> tuple[SelectionShardEntry, ...]:
    entries = []
    shards = corpus.split_shards("candidate")
    for done, shard in enumerate(shards, start=1):
        last = shard.first_sequence_id + shard.num_sequences - 1
        rows = connection.sql(
            f"SELECT sequence_id, teacher_nll, reference_nll, difference_score, num_tokens FROM selected "
            f"WHERE sequence_id BETWEEN {shard.first_sequence_id} AND {last} ORDER BY sequence_id"
        ).to_arrow_table()
        num_tokens = sum(rows["num_tokens"].to_pylist())
        with storage.publish(layout.selection_shard(selection_id, shard.shard_index)) as path:
            pq.write_table(rows.drop_columns(["num_tokens"]).cast(SELECTION_SCHEMA), path, compression="zstd")
            digest, num_bytes = digest_file(path), path.stat().st_size
        entries.append(
            SelectionShardEntry(
                shard_index=shard.shard_index,
                corpus_id=shard.corpus_id,
                digest=digest,
                num_bytes=num_bytes,
                num_sequences=rows.num_rows,
                num_tokens=num_tokens,
            )
        )
        on_progress(Progress("select", done, len(shards), "shards"))
    return tuple(entries)


def _summarise_domains(connection: duckdb.DuckDBPyConnection) -> dict[str, DomainSelection]:
    rows = connection.execute(f"""
        SELECT domain, count(*), count(s.sequence_id), sum(c.num_tokens), coalesce(sum(s.num_tokens), 0),
               avg(c.teacher_nll), avg(c.reference_nll), quantile_cont(c.difference_score, {list(QUANTILES)}), min(s.difference_score)
        FROM candidate_scores c LEFT JOIN (SELECT sequence_id, num_tokens, difference_score FROM selected) s USING (sequence_id)
        GROUP BY domain ORDER BY domain
    """).fetchall()
    return {
        row[0]: DomainSelection(
            num_candidates=row[1],
            num_selected=row[2],
            num_candidate_tokens=int(row[3]),
            num_selected_tokens=int(row[4]),
            # A parallel sum of floats ends in other last bits each time; the manifest must not.
            mean_teacher_nll=round(row[5], 9),
            mean_reference_nll=round(row[6], 9),
            difference_score_quantiles=tuple(row[7]),
            threshold=row[8],
        )
        for row in rows
    }


def _fetch_one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(row)
