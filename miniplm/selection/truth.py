"""A selection held against what is known of the documents: what was kept of each kind, and what another ratio would do.

Nothing here is read by what scores or selects; it is counted in DuckDB, after the selection.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from miniplm import layout
from miniplm.corpus.truth import resolve_truth_id
from miniplm.errors import CorpusError
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.records.truth import UNKNOWN, KindRow, RatioRow, TruthManifest, TruthSummary
from miniplm.selection.budgets import count_selected
from miniplm.selection.scans import scan_parquet
from miniplm.storage.root import Storage

RATIOS = tuple(step / 20 for step in range(1, 21))

# Kinds of sequences that hold documents of several labels.
_CLEAN_AND_DIRT = "clean and dirt in one"
_SOME_UNKNOWN = "partly unknown"
_MIXED_CLEAN = "several clean kinds"
_MIXED_DIRT = "several kinds of dirt"
_MIXED = "several kinds"


def summarise_truth(
    connection: duckdb.DuckDBPyConnection,
    storage: Storage,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    truth: Sequence[TruthManifest],
    clean: Sequence[str],
) -> TruthSummary:
    """The summary of a selection, from the table `candidate_scores` of its corpus and the labels of that.

    Raises `CorpusError` where the labels are of other sequences.
    """
    _join_kinds(connection, storage, selection, truth, clean)
    row = connection.execute("SELECT count(*), count(*) - count(kind) FROM judged").fetchone()
    if row != (selection.num_candidates, 0):
        raise CorpusError(
            f"the labels of corpus {corpus.corpus_id} are of other sequences than its {selection.num_candidates:,} candidates; delete "
            f"{', '.join(storage.url(layout.truth_manifest(entry.corpus_id, resolve_truth_id(entry.field))) for entry in truth)} and run again"
        )
    kept = connection.execute(
        "SELECT sum(clean_tokens) FILTER (is_kept), sum(known_tokens) FILTER (is_kept), sum(clean_tokens), sum(known_tokens) FROM judged"
    ).fetchone()
    assert kept is not None
    clean_kept, known_kept, clean_tokens, known_tokens = (int(value or 0) for value in kept)
    records: dict[str, int] = {}
    for entry in truth:
        for kind, count in entry.kinds.items():
            records[kind] = records.get(kind, 0) + count
    return TruthSummary(
        field=truth[0].field,
        score_unit=selection.score_unit,
        clean=tuple(clean),
        records=dict(sorted(records.items())),
        gone_files=tuple(path for entry in truth for path in entry.gone_files),
        kinds=_list_kinds(connection, clean),
        clean_share=_divide(clean_tokens, known_tokens) if clean_tokens else None,
        precision=_divide(clean_kept, known_kept) if clean_tokens else None,
        recall=_divide(clean_kept, clean_tokens),
        ratio=selection.kept_share,
        ratios=_try_ratios(connection, selection.within == "domain", clean_tokens) if clean_tokens and not selection.rule else (),
    )


def _join_kinds(
    connection: duckdb.DuckDBPyConnection,
    storage: Storage,
    selection: SelectionManifest,
    truth: Sequence[TruthManifest],
    clean: Sequence[str],
) -> None:
    """Creates the table `judged`, one row a candidate: its score, whether it is kept, its kind, and its tokens by what they are."""
    parts = scan_parquet(storage, [layout.truth_file(entry.corpus_id, resolve_truth_id(entry.field)) for entry in truth])
    kept = scan_parquet(storage, [layout.selection_shard(selection.selection_id, shard.shard_index) for shard in selection.shards])
    # Where no document is known to be clean, none is known to be dirt.
    mixed = _MIXED_DIRT if any(kind in entry.kinds for entry in truth for kind in clean) else _MIXED
    connection.execute("CREATE OR REPLACE TEMP TABLE clean_kinds (kind VARCHAR)")
    connection.executemany("INSERT INTO clean_kinds VALUES (?)", [[kind] for kind in clean])
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE judged AS
        WITH parts AS (
            SELECT sequence_id, kind::VARCHAR AS kind, num_tokens, kind::VARCHAR = '{UNKNOWN}' AS is_unknown,
                   kind::VARCHAR IN (SELECT kind FROM clean_kinds) AS is_clean
            FROM {parts}
        ), sequences AS (
            SELECT sequence_id, count(DISTINCT kind) > 1 AS is_mixed,
                   CASE WHEN count(DISTINCT kind) = 1 THEN min(kind)
                        WHEN bool_or(is_unknown) THEN '{_SOME_UNKNOWN}'
                        WHEN bool_and(is_clean) THEN '{_MIXED_CLEAN}'
                        WHEN bool_or(is_clean) THEN '{_CLEAN_AND_DIRT}'
                        ELSE '{mixed}' END AS kind,
                   coalesce(sum(num_tokens) FILTER (is_clean), 0) AS clean_tokens,
                   coalesce(sum(num_tokens) FILTER (NOT is_unknown OR is_clean), 0) AS known_tokens
            FROM parts GROUP BY sequence_id
        )
        SELECT c.sequence_id, c.domain, c.num_tokens, c.difference_score, k.sequence_id IS NOT NULL AS is_kept,
               s.kind, s.is_mixed, s.clean_tokens, s.known_tokens
        FROM candidate_scores c LEFT JOIN sequences s USING (sequence_id) LEFT JOIN (SELECT sequence_id FROM {kept}) k USING (sequence_id)
    """)


def _list_kinds(connection: duckdb.DuckDBPyConnection, clean: Sequence[str]) -> tuple[KindRow, ...]:
    """Clean kinds first, then sequences that are partly clean, dirt by what was kept of it, what is not known last."""
    rows = connection.execute("""
        SELECT kind, is_mixed, count(*), count(*) FILTER (is_kept), sum(num_tokens), coalesce(sum(num_tokens) FILTER (is_kept), 0),
               round(avg(difference_score), 9)
        FROM judged GROUP BY kind, is_mixed ORDER BY kind, is_mixed
    """).fetchall()

    def rank(row: KindRow) -> tuple[int, float, str]:
        if row.is_mixed:
            place = {_MIXED_CLEAN: 1, _CLEAN_AND_DIRT: 2, _MIXED_DIRT: 4, _MIXED: 4}.get(row.kind, 6)
        else:
            place = 0 if row.is_clean else 5 if row.kind == UNKNOWN else 3
        return place, -row.num_selected / row.num_candidates, row.kind

    found = (
        KindRow(
            kind=kind,
            is_clean=not is_mixed and kind in clean,
            is_mixed=is_mixed,
            num_candidates=num_candidates,
            num_selected=num_selected,
            num_candidate_tokens=int(num_tokens),
            num_selected_tokens=int(num_selected_tokens),
            mean_difference_score=mean,
        )
        for kind, is_mixed, num_candidates, num_selected, num_tokens, num_selected_tokens, mean in rows
    )
    return tuple(sorted(found, key=rank))


def _try_ratios(connection: duckdb.DuckDBPyConnection, by_domain: bool, clean_tokens: int) -> tuple[RatioRow, ...]:
    """What the rule would keep at each ratio, by one pass over the ranking: sums up to each place, read where a ratio ends."""
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE ranked AS
        SELECT {"domain" if by_domain else "''"} AS part, row_number() OVER ranking AS place,
               sum(clean_tokens) OVER ranking AS clean_tokens, sum(known_tokens) OVER ranking AS known_tokens
        FROM judged WINDOW ranking AS ({"PARTITION BY domain" if by_domain else ""} ORDER BY difference_score DESC, sequence_id ASC)
    """)
    sizes = connection.execute("SELECT part, count(*) FROM ranked GROUP BY part ORDER BY part").fetchall()
    connection.execute("CREATE OR REPLACE TEMP TABLE ends (ratio DOUBLE, part VARCHAR, place BIGINT)")
    connection.executemany(
        "INSERT INTO ends VALUES (?, ?, ?)",
        [[ratio, part, count_selected(size, ratio)] for ratio in RATIOS for part, size in sizes],
    )
    rows = connection.execute("""
        SELECT e.ratio, coalesce(sum(r.clean_tokens), 0), coalesce(sum(r.known_tokens), 0)
        FROM ends e LEFT JOIN ranked r USING (part, place) GROUP BY e.ratio ORDER BY e.ratio
    """).fetchall()
    return tuple(
        RatioRow(ratio=ratio, precision=_divide(int(clean), int(known)), recall=_divide(int(clean), clean_tokens))
        for ratio, clean, known in rows
    )


def _divide(part: int, whole: int) -> float | None:
    return part / whole if whole else None
