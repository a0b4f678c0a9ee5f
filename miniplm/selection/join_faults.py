"""What is wrong with a join that is not one to one, over all shards: which sequences, which shards, and the commands that mend it.

Slow, and only asked where `join` has met a fault: DuckDB joins by ids here, which takes nothing of the order of rows for granted.
"""

from __future__ import annotations

import duckdb

from miniplm import layout
from miniplm.errors import CorpusError, DamagedFileError, ScoreJoinError, first_line, list_offenders
from miniplm.records.manifests import CorpusManifest, ScoreShardManifest, ShardEntry, is_proxy
from miniplm.records.stored import read_record
from miniplm.scoring.shards import MOST_NLL_SUM, check_score_shards, parse_scores, read_scores
from miniplm.selection.connection import connect, raise_store_error
from miniplm.selection.scans import scan_parquet
from miniplm.storage.root import Storage

FIND_DAMAGE = "`miniplm status CONFIG` names the shards that are not what the manifest says; delete their files and run `miniplm prepare CONFIG`"


def check_scores(storage: Storage, corpus: CorpusManifest, teacher_id: str, reference_id: str) -> list[str]:
    """The digests of all score files, the teacher's first, each in the order of the shards.

    Raises `ScoreJoinError` unless every candidate shard is scored by both models, its files being what their manifests say.
    """
    digests: list[str] = []
    problems: list[str] = []
    shards: dict[str, list[int]] = {}
    for role, model_id in zip(_name_roles(teacher_id), (teacher_id, reference_id), strict=True):
        for state in check_score_shards(storage, corpus, model_id):
            if state.manifest is not None:
                digests.append(state.manifest.digest)
                continue
            name = layout.shard_name(state.shard_index)
            problems.append(
                f"{name} has " + (f"no {role} scores" if state.state == "missing" else f"broken {role} scores: {state.reason}")
            )
            shards.setdefault(role, []).append(state.shard_index)
    if problems:
        raise ScoreJoinError(f"{list_offenders(problems)}. {_repair(shards)}")
    return digests


def _name_roles(teacher_id: str) -> tuple[str, str]:
    """Whose scores are joined, as `miniplm score --model` calls them: in the teacher's place a proxy may stand."""
    return ("proxy" if is_proxy(teacher_id) else "teacher", "reference")


def raise_join_faults(storage: Storage, corpus: CorpusManifest, teacher_id: str, reference_id: str) -> None:
    """Raises `ScoreJoinError` or `CorpusError` for what is wrong with the candidates and their scores; returns where nothing is."""
    shards = corpus.split_shards("candidate")
    if not all(_has_its_scores(storage, shard, model_id) for model_id in (teacher_id, reference_id) for shard in shards):
        check_scores(storage, corpus, teacher_id, reference_id)
    roles = _name_roles(teacher_id)
    sources = {
        f"{role}_scores": ("*", [layout.score_shard(shard.corpus_id, model_id, shard.shard_index) for shard in shards])
        for role, model_id in zip(roles, (teacher_id, reference_id), strict=True)
    }
    candidates = [layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index) for shard in shards]
    sources["candidates"] = ("sequence_id, domain::VARCHAR AS domain, num_tokens", candidates)
    # A dozen queries follow. Local files are read again for each, remote ones once.
    kind = "VIEW" if storage.is_local else "TABLE"
    with connect(storage) as connection:
        try:
            for name, (columns, relatives) in sources.items():
                files = scan_parquet(storage, relatives)
                connection.execute(f"CREATE OR REPLACE TEMP {kind} {name} AS SELECT {columns} FROM {files}")
            _check_candidates(connection, shards)
            for role in roles:
                _check_role(connection, shards, role)
            _check_same_targets(connection, shards, roles)
        except duckdb.Error as error:
            raise_store_error(error)
            # The score files have their digests checked, so it is a corpus shard that cannot be read.
            if isinstance(error, duckdb.IOException | duckdb.InvalidInputException):
                fault = "cannot be read"
            elif type(error) is duckdb.Error:
                fault = "is damaged"
            else:
                raise
            raise CorpusError(
                f"a candidate shard of corpus {corpus.corpus_id} {fault} ({first_line(error)}). {FIND_DAMAGE}"
            ) from error
    # All ids are there, once, but in other shards than their own.
    check_scores(storage, corpus, teacher_id, reference_id)


def _has_its_scores(storage: Storage, shard: ShardEntry, model_id: str) -> bool:
    try:
        manifest = read_record(
            storage, layout.score_shard_manifest(shard.corpus_id, model_id, shard.shard_index), ScoreShardManifest
        )
        parse_scores(read_scores(storage, shard, manifest))
        return True
    except (FileNotFoundError, DamagedFileError):
        return False


def _check_candidates(connection: duckdb.DuckDBPyConnection, shards: tuple[ShardEntry, ...]) -> None:
    """The candidate shards must hold as many sequences, ids and tokens as the corpus manifest says; their digests are not read here."""
    row = connection.execute(
        "SELECT count(*), count(DISTINCT sequence_id), coalesce(sum(TRY_CAST(num_tokens AS BIGINT)), 0), count(*) - count(domain) FROM candidates"
    ).fetchone()
    num_sequences, num_tokens = sum(shard.num_sequences for shard in shards), sum(shard.num_tokens for shard in shards)
    if row != (num_sequences, num_sequences, num_tokens, 0):
        assert row is not None
        raise CorpusError(
            f"the candidate shards hold {row[0]} sequences with {row[1]} ids and {row[2]} tokens, "
            f"the corpus manifest says {num_sequences} and {num_tokens}. {FIND_DAMAGE}"
        )


def _check_role(connection: duckdb.DuckDBPyConnection, shards: tuple[ShardEntry, ...], role: str) -> None:
    checks = (
        (f"have no {role} score", f"SELECT sequence_id FROM candidates ANTI JOIN {role}_scores USING (sequence_id)"),
        (f"have more than one {role} score", f"SELECT sequence_id FROM {role}_scores GROUP BY sequence_id HAVING count(*) > 1"),
        (
            f"have a {role} score but are no candidates",
            f"SELECT sequence_id FROM {role}_scores ANTI JOIN candidates USING (sequence_id)",
        ),
        (
            f"have a {role} score that is NULL or not finite",
            f"SELECT sequence_id FROM {role}_scores WHERE nll_sum IS NULL OR NOT isfinite(nll_sum) OR num_scored_tokens IS NULL OR num_scored_tokens < 0",
        ),
        (
            f"have a {role} score beyond {MOST_NLL_SUM:g}, which no model gives",
            f"SELECT sequence_id FROM {role}_scores WHERE abs(nll_sum) >= {MOST_NLL_SUM}",
        ),
    )
    for fault, query in checks:
        _refuse(connection, shards, fault, query, (role,))


def _check_same_targets(connection: duckdb.DuckDBPyConnection, shards: tuple[ShardEntry, ...], roles: tuple[str, str]) -> None:
    query = f"""SELECT sequence_id FROM {roles[0]}_scores t JOIN {roles[1]}_scores r USING (sequence_id)
                WHERE t.num_scored_tokens <> r.num_scored_tokens"""
    fault = f"have another number of scored tokens under the {roles[0]} than under the {roles[1]}"
    _refuse(connection, shards, fault, query, roles)


def _refuse(
    connection: duckdb.DuckDBPyConnection, shards: tuple[ShardEntry, ...], fault: str, query: str, roles: tuple[str, ...]
) -> None:
    connection.execute(f"CREATE OR REPLACE TEMP TABLE offenders AS {query}")
    total = int(connection.execute("SELECT count(*) FROM offenders").fetchall()[0][0])
    if not total:
        return
    rows = connection.execute("SELECT DISTINCT sequence_id FROM offenders ORDER BY sequence_id LIMIT 10").fetchall()
    first = [int(row[0]) for row in rows]
    touched = [
        shard
        for shard in shards
        if connection.execute(
            "SELECT 1 FROM offenders WHERE sequence_id >= ? AND sequence_id < ? LIMIT 1",
            [shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences],
        ).fetchall()
    ]
    names = list_offenders([layout.shard_name(shard.shard_index) for shard in touched]) or "no shard of this corpus"
    num_sequences = sum(shard.num_sequences for shard in touched)
    raise ScoreJoinError(
        f"{names}: {total} of {num_sequences} sequences {fault} (first: {', '.join(map(str, first))}). "
        + _repair({role: [shard.shard_index for shard in touched] for role in roles}, " --again")
    )


def _repair(shards: dict[str, list[int]], option: str = "") -> str:
    commands = [f"`miniplm score CONFIG --model {role}{_shard_options(indices)}{option}`" for role, indices in shards.items()]
    return f"Run {' and '.join(commands)}"


def _shard_options(indices: list[int]) -> str:
    return "".join(f" --shard {index}" for index in indices) if len(indices) <= 10 else ""
