"""The candidate sequences with the scores of both models, one to one: shard by shard in Python, or as a table of DuckDB."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import duckdb

from miniplm import layout
from miniplm.errors import CorpusError, ScoreJoinError
from miniplm.records.manifests import CorpusManifest, ScoreShardManifest, ShardEntry
from miniplm.scoring.shards import find_score_manifests, read_scores
from miniplm.selection.candidates import ReadScores, ShardScores, ShardSequences, join_scores, read_sequences
from miniplm.selection.connection import count_threads
from miniplm.selection.join_faults import FIND_DAMAGE, check_scores, raise_join_faults
from miniplm.selection.scans import scan_parquet
from miniplm.storage.root import Storage

Item = TypeVar("Item")
Result = TypeVar("Result")
ManifestPair = tuple[ScoreShardManifest, ScoreShardManifest]


def find_manifests(storage: Storage, corpus: CorpusManifest, teacher_id: str, reference_id: str) -> list[ManifestPair]:
    """What the manifests say of the scores of every candidate shard, the teacher's first; the score files are not read.

    Raises `ScoreJoinError` where one is missing or damaged, or speaks of other sequences: as `check_scores`, of all shards at once.
    """
    teacher, reference = (find_score_manifests(storage, corpus, model_id) for model_id in (teacher_id, reference_id))
    if teacher is None or reference is None:
        check_scores(storage, corpus, teacher_id, reference_id)
        raise ScoreJoinError("scores of this corpus were written just now, by another process; run the same command again")
    return list(zip(teacher, reference, strict=True))


def join_shards(
    storage: Storage,
    corpus: CorpusManifest,
    manifests: list[ManifestPair],
    visit: Callable[[ShardEntry, ShardSequences, ShardScores], Result],
    read: ReadScores | None = None,
) -> Iterator[tuple[Result, bool]]:
    """What `visit` makes of each candidate shard, in their order, and whether all rows of it stand in the order of their ids.

    Shards are read, proven and visited in threads, each file once. Raises `ScoreJoinError` unless each candidate has exactly one
    finite score from each model, and `CorpusError` where the candidates are not those of the corpus manifest.
    """
    read = read or (lambda shard, manifest: read_scores(storage, shard, manifest))
    shards = corpus.split_shards("candidate")

    def join(item: tuple[ShardEntry, ManifestPair]) -> tuple[Result, bool, int]:
        shard, (teacher, reference) = item
        sequences = read_sequences(storage, shard)
        scores, in_place = join_scores(shard, teacher, reference, read)
        return visit(shard, sequences, scores), in_place and sequences.is_in_place, int(sequences.num_tokens.sum(dtype="int64"))

    num_tokens = 0
    try:
        for result, in_place, shard_tokens in run_in_order(join, zip(shards, manifests, strict=True), count_threads(storage)):
            num_tokens += shard_tokens
            yield result, in_place
        if num_tokens != sum(shard.num_tokens for shard in shards):
            raise CorpusError(
                f"the candidate shards hold {num_tokens} tokens, the corpus manifest says another number. {FIND_DAMAGE}"
            )
    except (ScoreJoinError, CorpusError) as error:
        # It was met in one shard; people are told of all of them.
        teacher_id, reference_id = (manifest.model_id for manifest in manifests[0])
        raise_join_faults(storage, corpus, teacher_id, reference_id)
        if isinstance(error, CorpusError):
            raise CorpusError(f"{error}. {FIND_DAMAGE}") from error
        raise


def run_in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """What a function makes of each item, in their order, so many at a time; after an error none is begun."""
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 2 * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def candidate_scores(
    connection: duckdb.DuckDBPyConnection,
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    score: str = "mean",
) -> None:
    """Creates `candidate_scores`, one row a candidate sequence, NLLs in nats a scored token:

        sequence_id, domain, num_tokens, num_scored_tokens, teacher_nll, reference_nll, difference_score

        difference_score = reference_nll - teacher_nll                    score "mean" (MiniPLM, eq. for r(x))
        difference_score = reference_nll_sum - teacher_nll_sum            score "sum"

    A sequence without a scored target has NLL 0. At a local root it is a view, which a query streams through whatever the number
    of rows; of remote files a table, which spills to the disk, so that they are read once. Raises as `join_shards`, and names the
    shards and the command that repairs them.
    """
    manifests = find_manifests(storage, corpus, teacher_id, reference_id)
    in_place = sum(not whole for _, whole in join_shards(storage, corpus, manifests, lambda *_: None)) == 0
    shards = corpus.split_shards("candidate")
    candidates = scan_parquet(storage, [layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index) for shard in shards])
    teacher, reference = (
        scan_parquet(storage, [layout.score_shard(shard.corpus_id, model_id, shard.shard_index) for shard in shards])
        for model_id in (teacher_id, reference_id)
    )
    # The rows of all three were just seen to stand in the same order; where a file has them in another, ids are joined.
    if in_place:
        rows = f"{candidates} candidates POSITIONAL JOIN {teacher} teacher POSITIONAL JOIN {reference} reference"
    else:
        rows = f"{candidates} candidates JOIN {teacher} teacher USING (sequence_id) JOIN {reference} reference USING (sequence_id)"
    difference = "reference.nll_sum - teacher.nll_sum" if score == "sum" else "reference_nll - teacher_nll"
    connection.execute(f"""
        CREATE OR REPLACE TEMP {"VIEW" if storage.is_local else "TABLE"} candidate_scores AS
        SELECT candidates.sequence_id, domain::VARCHAR AS domain, num_tokens, teacher.num_scored_tokens,
               teacher.nll_sum / greatest(teacher.num_scored_tokens, 1) AS teacher_nll,
               reference.nll_sum / greatest(reference.num_scored_tokens, 1) AS reference_nll,
               {difference} AS difference_score
        FROM {rows}
    """)
