"""Rules that the product has not, each as one number a candidate sequence: the largest are kept.

A rule is published as the scores of a model that does not exist, whose NLL is the number with its sign turned, beside one whose NLL is
0 throughout: what `miniplm` then selects by their difference is what the rule keeps. So students of other rules are trained by the same code
on the same kind of selection.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import zstandard
from numpy.typing import NDArray

from benchmarks.selection_inputs import write_scores
from miniplm import layout
from miniplm.config.run import SelectionConfig
from miniplm.corpus.reader import load_corpus_tokenizer, read_shard, read_token_ids
from miniplm.corpus.truth import resolve_truth_id
from miniplm.errors import SourceError
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.selection.candidates import read_sequences
from miniplm.selection.join import find_manifests, join_shards
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage, digest_content

Floats = NDArray[np.float64]
ZERO = "rule-zero"
SHINGLE_WORDS = 8  # of a deduplication by shingles: shorter ones are phrases that many texts share
LARGEST_REPEATED_SHARE = 0.25
FEATURES = 1 << 17  # hashed n-grams; fastText has 2 M buckets for corpora a thousand times larger
PIECE_CHARS = 1_000  # of a labelled document: about as long as a sequence
_DROPPED = -1e6


@dataclass(frozen=True)
class Candidates:
    """All candidates in the order of their ids, (num_sequences,) each; `kind` is `clean` where no token is of dirt."""

    domain: NDArray[np.str_]
    kind: NDArray[np.str_]
    num_tokens: NDArray[np.int64]

    @property
    def is_clean(self) -> NDArray[np.bool_]:  # (num_sequences,)
        return self.kind == "clean"


@dataclass(frozen=True)
class Scores:
    """What both models gave the candidates in the order of their ids, (num_sequences,) each, in nats a scored token."""

    teacher_nll: Floats
    reference_nll: Floats

    @property
    def difference(self) -> Floats:  # (num_sequences,)
        return self.reference_nll - self.teacher_nll


def read_candidates(storage: Storage, corpus: CorpusManifest, truth: str) -> Candidates:
    """Domains, lengths and kinds of all candidates; `truth` is the field of their labels, which are there once a corpus is prepared."""
    parts = [read_sequences(storage, shard) for shard in corpus.split_shards("candidate")]
    labels = pq.read_table(storage.path(layout.truth_file(corpus.corpus_id, resolve_truth_id(truth))))
    kinds: dict[int, set[str]] = {}
    for sequence_id, kind in zip(labels["sequence_id"].to_pylist(), labels["kind"].to_pylist(), strict=True):
        kinds.setdefault(sequence_id, set()).add(kind)
    return Candidates(
        np.concatenate([np.array(part.domain_names)[part.domains] for part in parts]),
        np.array([_join_kinds(kinds[sequence_id]) for sequence_id in list_sequence_ids(corpus).tolist()]),
        np.concatenate([part.num_tokens for part in parts]).astype(np.int64),
    )


def read_scores(storage: Storage, corpus: CorpusManifest, teacher_id: str, reference_id: str) -> Scores:
    """The scores of all candidates. Raises `ScoreJoinError` where some are missing or damaged."""
    manifests = find_manifests(storage, corpus, teacher_id, reference_id)
    parts = [scores for scores, _ in join_shards(storage, corpus, manifests, lambda _, sequences, scores: scores)]
    return Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("teacher_nll", "reference_nll")))


def list_sequence_ids(corpus: CorpusManifest) -> NDArray[np.int64]:
    """The ids of all candidates, (num_sequences,) ascending: those of the reference split lie between them."""
    shards = corpus.split_shards("candidate")
    return np.concatenate(
        [np.arange(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences, dtype=np.int64) for shard in shards]
    )


def _join_kinds(kinds: set[str]) -> str:
    if len(kinds) == 1:
        return next(iter(kinds))
    return "clean and dirt" if "clean" in kinds else "several kinds of dirt"


def read_texts(storage: Storage, corpus: CorpusManifest) -> list[str]:
    """The text of each candidate sequence, in the order of their ids."""
    backend = load_corpus_tokenizer(storage, corpus.corpus_id).backend
    texts: list[str] = []
    for shard in corpus.split_shards("candidate"):
        texts += backend.decode_batch([ids.tolist() for ids in read_token_ids(read_shard(storage, shard, columns=["token_ids"]))])
    return texts


def rank_within_domains(values: Floats, domain: NDArray[np.str_], among: NDArray[np.bool_]) -> Floats:
    """For each sequence of values (num_sequences,) its place in its domain, in (0, 1), the best near 1; those not `among` come last of all."""
    ranks = np.full(len(values), _DROPPED)
    for name in np.unique(domain):
        rows = np.flatnonzero((domain == name) & among)
        ranks[rows[np.argsort(-values[rows], kind="stable")]] = 1 - (np.arange(len(rows)) + 0.5) / max(len(rows), 1)
    return ranks


def keep_among(values: Floats, among: NDArray[np.bool_]) -> Floats:
    """The values (num_sequences,), with those not `among` (num_sequences,) after all others."""
    return np.where(among, values, _DROPPED)


def find_repeated_shares(texts: Sequence[str]) -> Floats:
    """For each text the share of its shingles of eight words that an earlier text has, (num_texts,)."""
    seen: set[tuple[str, ...]] = set()
    shares = np.zeros(len(texts))
    for index, text in enumerate(texts):
        words = text.split()
        shingles = {tuple(words[start : start + SHINGLE_WORDS]) for start in range(max(len(words) - SHINGLE_WORDS + 1, 0))}
        shares[index] = len(shingles & seen) / len(shingles) if shingles else 0.0
        seen |= shingles
    return shares


def is_repeated(shares: Floats) -> NDArray[np.bool_]:
    """Which texts deduplication drops, (num_texts,), by their repeated shares (num_texts,)."""
    return shares > LARGEST_REPEATED_SHARE


def share_between(values: Floats, group: NDArray[np.str_]) -> float:
    """Share of the variance of values (num_sequences,) that the means of groups (num_sequences,) explain (eta squared): 1 where all of it."""
    _, codes = np.unique(group, return_inverse=True)
    means = (np.bincount(codes, values) / np.bincount(codes))[codes]
    return float(means.var() / values.var()) if values.var() else 0.0


def read_labelled(folder: str) -> tuple[list[str], list[bool]]:
    """Pieces of labelled documents about as long as a sequence, and whether each is of clean text."""
    paths = sorted(Path(folder).glob("*.jsonl.zst"))
    if not paths:
        raise SourceError(f"{folder} has no *.jsonl.zst with labelled documents; `python -m scripts.experiment_corpus` makes them")
    texts, labels = [], []
    for path in paths:
        for line in zstandard.decompress(path.read_bytes()).decode().splitlines():
            record = json.loads(line)
            pieces = [record["text"][start : start + PIECE_CHARS] for start in range(0, len(record["text"]), PIECE_CHARS)]
            texts += pieces
            labels += [record["meta"]["kind"] == "clean"] * len(pieces)
    return texts, labels


def hash_ngrams(text: str) -> NDArray[np.int64]:
    """The features of a text: words, pairs of words and groups of three characters, hashed, (num_features,), each as often as it occurs."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    grams = [*words, *(" ".join(pair) for pair in itertools.pairwise(words))]
    grams += ["#" + text[start : start + 3] for start in range(len(text) - 2)]
    return np.array([int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=4).digest()) % FEATURES for gram in grams], np.int64)


def train_classifier(texts: Sequence[str], is_good: Sequence[bool], epochs: int = 20, learning_rate: float = 0.5) -> Floats:
    """Weights (num_weights,) of a logistic regression on the mean of hashed n-grams, FEATURES and its bias: fastText's classifier of two
    classes, whose embeddings and output layer are one linear map. AdaGrad, in a fixed order.
    """
    weights, squares = np.zeros(FEATURES + 1), np.full(FEATURES + 1, 1e-8)
    features = [np.unique(hash_ngrams(text), return_counts=True) for text in texts]
    draw = np.random.Generator(np.random.PCG64(0))
    for _ in range(epochs):
        for index in draw.permutation(len(texts)):
            places, counts = features[index]
            shares = np.append(counts / max(counts.sum(), 1), 1.0)
            rows = np.append(places, FEATURES)
            error = float(is_good[index]) - 1 / (1 + np.exp(-float(weights[rows] @ shares)))
            gradient = error * shares
            squares[rows] += gradient**2
            weights[rows] += learning_rate * gradient / np.sqrt(squares[rows])
    return weights


def classify(weights: Floats, texts: Sequence[str]) -> Floats:
    """The classifier's logit of each text, (num_texts,): larger is better; `weights` are (num_weights,)."""
    logits = []
    for text in texts:
        found = hash_ngrams(text)
        logits.append(float(weights[found].mean() if len(found) else 0.0) + weights[-1])
    return np.array(logits)


def read_kept(storage: Storage, corpus: CorpusManifest, selection: SelectionManifest) -> NDArray[np.bool_]:
    """Which candidates a selection kept, (num_sequences,)."""
    paths = [layout.selection_shard(selection.selection_id, shard.shard_index) for shard in selection.shards]
    ids = [pq.read_table(storage.path(path), columns=["sequence_id"])["sequence_id"].to_numpy() for path in paths]
    return np.isin(list_sequence_ids(corpus), np.concatenate(ids))


def select_by(storage: Storage, corpus: CorpusManifest, candidates: Candidates, values: Floats, num_kept: int) -> SelectionManifest:
    """The selection of the `num_kept` sequences with the largest values (num_sequences,), ties by the smaller id."""
    model_id = f"rule-{digest_content([float(value) for value in values])}"
    for name, nll in ((ZERO, np.zeros(len(values))), (model_id, -values)):
        start = 0
        for shard in corpus.split_shards("candidate"):
            rows = slice(start, start + shard.num_sequences)
            start += shard.num_sequences
            if not storage.exists(layout.score_shard_manifest(shard.corpus_id, name, shard.shard_index)):
                num_scored = candidates.num_tokens[rows].astype(np.int32)
                write_scores(storage, shard, name, num_scored, nll[rows] * num_scored)
    # Half a sequence more, as the ratio is a float and the floor is taken.
    config = SelectionConfig(ratio=min(1.0, (num_kept + 0.5) / len(values)))
    return select_sequences(storage, corpus, model_id, ZERO, config)
