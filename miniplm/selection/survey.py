"""The first pass of a selection: all candidates are read once, proven, counted by domain, and their difference scores laid out in runs.

What the second pass needs is put aside on the way: domain and length of every sequence (3 bytes in most corpora), its ranking
key where that is not the difference score (8 bytes, and twice as many again in runs), and of a remote root the score files
themselves, so that each is fetched once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from miniplm import layout
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, ScoreShardManifest, ShardEntry
from miniplm.scoring.shards import read_scores
from miniplm.selection.candidates import Floats, Integers, ShardScores, ShardSequences, join_scores, read_again
from miniplm.selection.join import ManifestPair, find_manifests, join_shards
from miniplm.selection.keys import RankingKeys, ShardKeys, ShardRows
from miniplm.selection.order_statistics import GroupedRuns, ScratchFile, StoredArray
from miniplm.selection.prefixes import RankedRows
from miniplm.storage.root import Storage

# Domains in a query about quantiles.
_QUERY_DOMAINS = 128
# Sums of many NLLs: the shards are added in their order, and in more bits than a float64 has, so that the mean comes out the same.
_Sums = NDArray[np.longdouble]


@dataclass
class Survey:
    """What is known of all candidates. A domain is its place in `domains`; arrays are (num_domains,), NLLs sums in nats a token.

    `runs` holds the difference scores of all, `key_runs` the ranking keys of those that are ranked, which may be the same;
    `num_ranked` and `ranked_tokens` count these, `left_out` the others by reason.
    """

    keys: RankingKeys
    runs: GroupedRuns
    key_runs: GroupedRuns
    manifests: dict[int, ManifestPair]
    domains: list[str] = field(default_factory=list)
    num_sequences: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    num_tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    teacher_nll: _Sums = field(default_factory=lambda: np.zeros(0, dtype=np.longdouble))
    reference_nll: _Sums = field(default_factory=lambda: np.zeros(0, dtype=np.longdouble))
    num_ranked: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    ranked_tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    num_negative: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    _sequences: dict[int, tuple[StoredArray, StoredArray]] = field(default_factory=dict)
    _keys: dict[int, tuple[StoredArray, StoredArray | None]] = field(default_factory=dict)
    _score_files: dict[str, StoredArray] = field(default_factory=dict)
    _out_of_order: set[int] = field(default_factory=set)

    @property
    def ranked(self) -> RankedRows:
        """What is ranked, for the budgets."""
        return RankedRows(self.domains, self.num_ranked, self.ranked_tokens, self.key_runs, self._read_blocks)

    def _read_blocks(self) -> Iterator[tuple[Integers, Integers, Floats]]:
        """Domain, length and key of the sequences of each shard, (num_sequences,) each."""
        for index in sorted(self._keys):
            domains, num_tokens = self._sequences[index]
            yield domains.read(), num_tokens.read(), self._keys[index][0].read()

    @property
    def num_candidates(self) -> int:
        return int(self.num_sequences.sum())

    def quantiles(self, levels: Sequence[float]) -> list[tuple[float, ...]]:
        """Quantiles of each domain's difference scores at `levels`: DuckDB's `quantile_cont`, given the two values that it lies between.

        What it gives in between is left to it, since its last bit is that of how it was compiled.
        """
        quantiles: dict[int, tuple[float, ...]] = {}
        with duckdb.connect() as connection:
            # A query takes 2.5 ms, and many small domains have one size.
            for size in np.unique(self.num_sequences):
                domains = np.flatnonzero(self.num_sequences == size).tolist()
                places = [float(size - 1) * level for level in levels]
                for start in range(0, len(domains), _QUERY_DOMAINS):
                    quantiles |= self._interpolate(connection, domains[start : start + _QUERY_DOMAINS], places)
        return [quantiles[domain] for domain in range(len(self.domains))]

    def _interpolate(
        self, connection: duckdb.DuckDBPyConnection, domains: list[int], places: list[float]
    ) -> dict[int, tuple[float, ...]]:
        """The values of each domain at `places` between ranks; all of these domains have as many sequences."""
        ranks = sorted({rank for place in places for rank in (math.floor(place), math.ceil(place))})
        # A column a level, in which each domain has two rows: the values beside it. Not a table, which imports pandas.
        names = [f"level_{number}" for number in range(len(places))]
        given: list[float] = [place - math.floor(place) for place in places]
        for domain in domains:
            values = dict(zip(ranks, self.runs.find([domain], ranks), strict=True))
            for end in (math.floor, math.ceil):
                given += [domain, *(values[end(place)] for place in places)]
        row = f"(?::BIGINT, {', '.join('?::DOUBLE' for _ in names)})"
        rows = connection.execute(
            f"SELECT domain, {', '.join(f'quantile_cont({name}, ?::DOUBLE)' for name in names)} "
            f"FROM (VALUES {', '.join([row] * (2 * len(domains)))}) AS pairs(domain, {', '.join(names)}) GROUP BY domain",
            given,
        ).fetchall()
        return {domain: tuple(values) for domain, *values in rows}

    def read_sequences(self, shard: ShardEntry) -> tuple[Integers, Integers]:
        """Domain and length of each sequence of a shard, (num_sequences,) each."""
        domains, num_tokens = self._sequences[shard.shard_index]
        return domains.read(), num_tokens.read()

    def read_keys(self, shard: ShardEntry, scores: ShardScores) -> ShardKeys:
        """The keys of a shard once more: as they were made."""
        difference = scores.difference_score(self.keys.config.difference)
        if shard.shard_index not in self._keys:
            return ShardKeys(difference, difference)
        key, expression = self._keys[shard.shard_index]
        return ShardKeys(difference, key.read(), None if expression is None else expression.read())

    def read_scores(self, storage: Storage, shard: ShardEntry) -> ShardScores:
        """The scores of a shard once more: the same bytes, or `ScoreJoinError`."""

        def read(shard: ShardEntry, manifest: ScoreShardManifest) -> bytes:
            stored = self._score_files.get(layout.score_shard(shard.corpus_id, manifest.model_id, shard.shard_index))
            return read_scores(storage, shard, manifest) if stored is None else stored.read().tobytes()

        if shard.shard_index in self._out_of_order:
            return join_scores(shard, *self.manifests[shard.shard_index], read)[0]
        return read_again(shard, *self.manifests[shard.shard_index], read)


@dataclass(frozen=True)
class ShardSums:
    """Of each domain that a shard has: its place in `Survey.domains`, and sums over its sequences; (num_domains_here,) each."""

    domains: NDArray[np.int64]
    num_sequences: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    teacher_nll: NDArray[np.float64]
    reference_nll: NDArray[np.float64]
    num_ranked: NDArray[np.int64]
    ranked_tokens: NDArray[np.int64]
    num_negative: int
    left_out: dict[str, int]


def survey_candidates(
    storage: Storage,
    corpus: CorpusManifest,
    teacher_id: str,
    reference_id: str,
    keys: RankingKeys,
    scratch: ScratchFile,
    on_progress: ProgressCallback = ignore_progress,
) -> Survey:
    """Reads every candidate with its scores, once. Raises as `join_shards`, and what `keys` raises."""
    shards = corpus.split_shards("candidate")
    manifests = find_manifests(storage, corpus, teacher_id, reference_id)
    by_shard = {shard.shard_index: pair for shard, pair in zip(shards, manifests, strict=True)}
    runs = GroupedRuns(scratch)
    survey = Survey(keys, runs, runs if keys.are_differences else GroupedRuns(scratch), by_shard)
    # A budget of tokens asks for sums of them, and where rows are equal for their order.
    has_token_budget = keys.config.has_token_budget
    places: dict[str, int] = {}
    lock = threading.Lock()

    def read(shard: ShardEntry, manifest: ScoreShardManifest) -> bytes:
        content = read_scores(storage, shard, manifest)
        if not storage.is_local:
            relative = layout.score_shard(shard.corpus_id, manifest.model_id, shard.shard_index)
            survey._score_files[relative] = scratch.append(np.frombuffer(content, dtype=np.uint8))
        return content

    def visit(shard: ShardEntry, sequences: ShardSequences, scores: ShardScores) -> ShardSums:
        with lock:
            numbers = np.array([places.setdefault(name, len(places)) for name in sequences.domain_names], dtype=np.int64)
        num_tokens, size = sequences.num_tokens, len(numbers)
        here = sequences.domains.astype(np.intp)  # once, where each count and sum would make it anew
        made = keys.make(ShardRows(shard, sequences, scores))
        domains, lengths = _narrow(numbers)[here] if size else sequences.domains, _narrow(num_tokens)
        ranked = slice(None) if keys.are_differences else ~np.isnan(made.ranking_key)
        survey.key_runs.add(domains[ranked], made.ranking_key[ranked], lengths[ranked] if has_token_budget else None)
        if not keys.are_differences:
            survey.runs.add(domains, made.difference)
        if has_token_budget or not keys.are_differences:
            expression = None if made.expression is None else scratch.append(made.expression)
            survey._keys[shard.shard_index] = (scratch.append(made.ranking_key), expression)
        survey._sequences[shard.shard_index] = (scratch.append(domains), scratch.append(lengths))
        counts, tokens = np.bincount(here, minlength=size), sum_by(here, num_tokens, size).astype(np.int64)
        all_ranked = isinstance(ranked, slice)
        return ShardSums(
            domains=numbers,
            num_sequences=counts,
            num_tokens=tokens,
            teacher_nll=sum_by(here, scores.teacher_nll, size),
            reference_nll=sum_by(here, scores.reference_nll, size),
            num_ranked=counts if all_ranked else np.bincount(here[ranked], minlength=size),
            ranked_tokens=tokens if all_ranked else sum_by(here[ranked], num_tokens[ranked], size).astype(np.int64),
            num_negative=int(np.count_nonzero(made.difference < 0)),
            left_out=made.left_out,
        )

    for done, (sums, is_in_place) in enumerate(join_shards(storage, corpus, manifests, visit, read), start=1):
        if not is_in_place:
            survey._out_of_order.add(shards[done - 1].shard_index)
        add_sums(survey, sums)
        on_progress(Progress("read scores", done, len(shards), "shards"))
    survey.runs.finish()
    survey.key_runs.finish()
    survey.domains = sorted(places, key=lambda name: places[name])
    return survey


def add_sums(survey: Survey, sums: ShardSums) -> None:
    """Adds what a shard has to what is known of all; shards come in their order."""
    missing = max(0, int(sums.domains.max(initial=-1)) + 1 - len(survey.num_sequences))
    for name in ("num_sequences", "num_tokens", "teacher_nll", "reference_nll", "num_ranked", "ranked_tokens"):
        total: NDArray[Any] = np.pad(getattr(survey, name), (0, missing))
        total[sums.domains] += getattr(sums, name)
        setattr(survey, name, total)
    survey.num_negative += sums.num_negative
    for reason, number in sums.left_out.items():
        survey.left_out[reason] = survey.left_out.get(reason, 0) + number


def sum_by(groups: Integers, values: NDArray[Any], num_groups: int) -> NDArray[np.float64]:
    """Sums (num_groups,) of values (num_values,)."""
    return np.bincount(groups, weights=values, minlength=num_groups).astype(np.float64)


def _narrow(values: Integers) -> Integers:
    """The same numbers, none of them negative, in as few bytes as hold the largest."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
