"""Joins the candidate sequences with the scores of both models in DuckDB, and refuses anything but a one-to-one match."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from miniplm import layout
from miniplm.errors import CorpusError, ScoreJoinError, StorageError, StorageUnavailableError, first_line, list_offenders
from miniplm.records.manifests import CorpusManifest, ShardEntry
from miniplm.scoring.shards import check_score_shards
from miniplm.selection.scans import scan_parquet
from miniplm.storage.root import Storage

_ROLES = ("teacher", "reference")
# Requests to a store at a time; DuckDB's own number is that of the cores.
_REMOTE_THREADS = 16


@contextmanager
def connect(storage: Storage) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB that reads files at the storage root; what does not fit in memory spills to a temporary folder.

    Raises what a remote root raises, which DuckDB makes an error of its own.
    """
    with (
        tempfile.TemporaryDirectory(prefix="miniplm-duckdb-") as spill,
        duckdb.connect(config={"temp_directory": spill}) as connection,
    ):
        if not storage.is_local:
            connection.register_filesystem(storage.open_snapshot())
            # A thread waits for the store most of the time.
            connection.execute(f"SET threads = {_REMOTE_THREADS}")
        try:
            yield connection
        except duckdb.Error as error:
            _raise_store_error(error)
            raise


def check_scores(storage: Storage, corpus: CorpusManifest, teacher_id: str, reference_id: str) -> list[str]:
    """The digests of all score files, the teacher's first, each in the order of the shards.

    Raises `ScoreJoinError` unless every candidate shard is scored by both models, its files being what their manifests say.
    """
    digests: list[str] = []
    problems: list[str] = []
    shards: dict[str, list[int]] = {}
    for role, model_id in zip(_ROLES, (teacher_id, reference_id), strict=True):
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


def candidate_scores(
    connection: duckdb.DuckDBPyConnection,
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    score: str = "mean",
) -> None:
    """Creates the table `candidate_scores`, one row a candidate sequence, NLLs in nats a scored token:

        sequence_id, domain, num_tokens, num_scored_tokens, teacher_nll, reference_nll, difference_score

        difference_score = reference_nll - teacher_nll                    score "mean" (MiniPLM, eq. for r(x))
        difference_score = reference_nll_sum - teacher_nll_sum            score "sum"

    A sequence without a scored target has NLL 0. Raises `ScoreJoinError` unless each candidate has exactly one
    finite score from each model; it names the shards and the command that repairs them.
    """
    shards = corpus.split_shards("candidate")
    sources: dict[str, tuple[str, list[str]]] = {}
    for role, model_id in zip(_ROLES, (teacher_id, reference_id), strict=True):
        scores = [layout.score_shard(shard.corpus_id, model_id, shard.shard_index) for shard in shards]
        sources[f"{role}_scores"] = ("*", scores)
    candidates = [layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index) for shard in shards]
    sources["candidates"] = ("sequence_id, domain::VARCHAR AS domain, num_tokens", candidates)
    # A dozen queries follow. Local files are read again for each, remote ones once.
    kind = "VIEW" if storage.is_local else "TABLE"
    try:
        for name, (columns, relatives) in sources.items():
            files = scan_parquet(storage, relatives)
            connection.execute(f"CREATE OR REPLACE TEMP {kind} {name} AS SELECT {columns} FROM {files}")
        _check_candidates(connection, shards)
        for role in _ROLES:
            _check_role(connection, shards, role)
        _check_same_targets(connection, shards)
    except duckdb.Error as error:
        _raise_store_error(error)
        # The score files have their digests checked, so it is a corpus shard that cannot be read.
        if isinstance(error, duckdb.IOException | duckdb.InvalidInputException):
            fault = "cannot be read"
        elif type(error) is duckdb.Error:
            fault = "is damaged"
        else:
            raise
        raise CorpusError(
            f"a candidate shard of corpus {corpus.corpus_id} {fault} ({first_line(error)}). {_FIND_DAMAGE}"
        ) from error
    difference = (
        "reference.nll_sum - teacher.nll_sum"
        if score == "sum"
        else "reference.nll_sum / greatest(reference.num_scored_tokens, 1) - teacher.nll_sum / greatest(teacher.num_scored_tokens, 1)"
    )
    # `greatest(..., 1)`: a sequence without a scored target has the sum 0, and SQL makes NULL of 0 / 0, which no order ranks.
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE candidate_scores AS
        SELECT sequence_id, domain, num_tokens, teacher.num_scored_tokens,
               teacher.nll_sum / greatest(teacher.num_scored_tokens, 1) AS teacher_nll,
               reference.nll_sum / greatest(reference.num_scored_tokens, 1) AS reference_nll,
               {difference} AS difference_score
        FROM candidates JOIN teacher_scores teacher USING (sequence_id) JOIN reference_scores reference USING (sequence_id)
    """)


_FIND_DAMAGE = "`miniplm status CONFIG` names the shards that are not what the manifest says; delete their files and run `miniplm prepare CONFIG`"


_STORE_ERRORS = {kind.__name__: kind for kind in (StorageError, StorageUnavailableError)}


def _raise_store_error(error: duckdb.Error) -> None:
    """Raises the error of a remote root that DuckDB met while it read: all that is left of it is a line of the message."""
    told = re.search(rf"^({'|'.join(_STORE_ERRORS)}): (.+)$", str(error), re.MULTILINE)
    if told:
        raise _STORE_ERRORS[told[1]](told[2]) from error


def _check_candidates(connection: duckdb.DuckDBPyConnection, shards: tuple[ShardEntry, ...]) -> None:
    """The candidate shards must hold as many sequences, ids and tokens as the corpus manifest says; their digests are not read here."""
    row = connection.execute(
        "SELECT count(*), count(DISTINCT sequence_id), coalesce(sum(num_tokens), 0), count(*) - count(domain) FROM candidates"
    ).fetchone()
    num_sequences, num_tokens = sum(shard.num_sequences for shard in shards), sum(shard.num_tokens for shard in shards)
    if row != (num_sequences, num_sequences, num_tokens, 0):
        assert row is not None
        raise CorpusError(
            f"the candidate shards hold {row[0]} sequences with {row[1]} ids and {row[2]} tokens, "
            f"the corpus manifest says {num_sequences} and {num_tokens}. {_FIND_DAMAGE}"
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
    )
    for fault, query in checks:
        _refuse(connection, shards, fault, query, (role,))


def _check_same_targets(connection: duckdb.DuckDBPyConnection, shards: tuple[ShardEntry, ...]) -> None:
    query = """SELECT sequence_id FROM teacher_scores t JOIN reference_scores r USING (sequence_id)
               WHERE t.num_scored_tokens <> r.num_scored_tokens"""
    _refuse(connection, shards, "have another number of scored tokens under the teacher than under the reference", query, _ROLES)


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
