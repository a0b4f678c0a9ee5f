"""Fits a proxy to the labelled sequences, and keeps what it predicts of each by a fit that had not seen it.

Shapes: N labelled sequences, D columns that are scaled, F columns in all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray
from safetensors.numpy import save_file

from miniplm import layout
from miniplm.config.proxy import ProxyConfig
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.errors import ProxyError, ScoreJoinError
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.proxy.features import Floats, PoolStates, Scale, join_columns, read_columns
from miniplm.proxy.identity import find_label_manifests, find_proxy, resolve_proxy_id
from miniplm.proxy.labels import FEWEST_LABELS, find_labelled, hash_ids, list_ids
from miniplm.proxy.ridge import NUM_FOLDS, Ridge, fit_ridge
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.proxies import ProxyManifest
from miniplm.scoring.shards import parse_scores, read_scores
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage, digest_file
from miniplm.storage.tables import publish_table
from miniplm.versions import list_versions

# What is fitted at once, so that memory stays bounded: n-grams take 12 bytes each, two a token at most; of states a few thousand sequences tell
# as much, and each costs a pass of the reference.
_MOST_TOKENS = {"linear": 50_000_000, "head": 16_000_000}
MEASUREMENT_SCHEMA = pa.schema(
    [
        ("sequence_id", pa.int64()),
        ("domain", pa.string()),
        ("num_scored_tokens", pa.int32()),
        ("teacher_nll", pa.float64()),
        ("reference_nll", pa.float64()),
        ("predicted_nll", pa.float64()),
    ]
)


@dataclass(frozen=True)
class ScoredLabels:
    """The labelled sequences with both scores, by their ids as labels: (N,) each, NLL sums in nats."""

    sequence_ids: NDArray[np.int64]
    num_scored_tokens: NDArray[np.int32]
    teacher_nll_sum: Floats
    reference_nll_sum: Floats


def fit_proxy(
    storage: Storage,
    corpus: CorpusManifest,
    labels: CorpusManifest,
    config: ProxyConfig,
    teacher: ModelEntry,
    reference: ModelEntry,
    pool: PoolStates | None = None,
    device: str = "cpu",
    on_progress: ProgressCallback = ignore_progress,
) -> ProxyManifest:
    """Fits the proxy of a corpus and publishes `models/PROXY_ID`: weights, then what was held out, then the manifest. Found again where it is there.

    `pool` gives the reference's states, for `head`. Raises `ScoreJoinError` where scores of labels are missing or damaged.
    """
    proxy_id = resolve_proxy_id(storage, corpus, labels, config, teacher, reference)
    if proxy_id is None:
        raise ScoreJoinError(
            f"the labelled sequences of corpus {corpus.corpus_id} are not all scored by teacher and reference; run `miniplm score CONFIG --model "
            "teacher` and `miniplm score CONFIG --model reference`"
        )
    if (found := find_proxy(storage, proxy_id)) is not None:
        return found
    started = time.perf_counter()
    with exclusive(storage, layout.model_folder(proxy_id), f"proxy {proxy_id}"):
        scored = read_scored_labels(storage, corpus, labels, config, teacher, reference)
        rows, domains, ngrams, columns = _read_features(storage, labels, scored, config, pool, on_progress)
        if len(rows) < FEWEST_LABELS:
            raise ProxyError(
                f"{len(rows)} labelled sequences of corpus {corpus.corpus_id} have a scored token; a proxy needs at least {FEWEST_LABELS}"
            )
        counts = scored.num_scored_tokens[rows]
        reference_nll, teacher_nll = scored.reference_nll_sum[rows] / counts, scored.teacher_nll_sum[rows] / counts
        scale = Scale.of(columns)
        folds = (hash_ids(scored.sequence_ids[rows], config.seed + 1) * NUM_FOLDS).astype(np.int8)
        fitted = fit_ridge(join_columns(ngrams, scale.apply(columns)), reference_nll - teacher_nll, folds)
        measured = [scored.sequence_ids[rows], domains, counts, teacher_nll, reference_nll, reference_nll - fitted.held_out]
        measurement = pa.Table.from_arrays([pa.array(column) for column in measured], schema=MEASUREMENT_SCHEMA)
        storage.delete(layout.proxy_manifest(proxy_id))
        manifest = ProxyManifest(
            proxy_id=proxy_id,
            kind=config.scorer,
            corpus_id=corpus.corpus_id,
            labels_id=labels.corpus_id,
            share=config.share,
            seed=config.seed,
            teacher=teacher,
            reference=reference,
            num_labels=len(scored.sequence_ids),
            num_label_tokens=sum(shard.num_tokens for shard in labels.shards),
            num_fitted=len(rows),
            num_features=len(fitted.weights),
            penalty=fitted.penalty,
            weights_digest=_publish_weights(storage, proxy_id, fitted, scale),
            measurement_digest=publish_table(storage, layout.proxy_measurement(proxy_id), measurement)[0],
            seconds=time.perf_counter() - started,
            device=device,
            versions=list_versions(),
        )
        storage.write_json(layout.proxy_manifest(proxy_id), manifest.as_json())
    return manifest


def read_scored_labels(
    storage: Storage,
    corpus: CorpusManifest,
    labels: CorpusManifest,
    config: ProxyConfig,
    teacher: ModelEntry,
    reference: ModelEntry,
) -> ScoredLabels:
    """The scores of the labels: the teacher's of them, the reference's out of those of all candidates.

    Raises `ScoreJoinError` where both were not scored over the same tokens, and `DamagedFileError` where a file is not what its manifest says.
    """
    manifests = find_label_manifests(storage, corpus, labels, teacher, reference)
    assert manifests is not None, "the proxy has an id, so its scores are there"
    by_teacher = pa.concat_tables(
        parse_scores(read_scores(storage, shard, manifest)).sort_by("sequence_id")
        for shard, manifest in zip(labels.split_shards("candidate"), manifests[0], strict=True)
    )
    of_reference = []
    for shard, manifest in zip(corpus.split_shards("candidate"), manifests[1], strict=True):
        labelled = find_labelled(list_ids(shard), config.share, config.seed)
        if labelled.any():
            table = parse_scores(read_scores(storage, shard, manifest)).sort_by("sequence_id")
            of_reference.append(table.filter(pa.array(labelled)))
    by_reference = pa.concat_tables(of_reference)
    counts = by_teacher["num_scored_tokens"].to_numpy()
    if not np.array_equal(counts, by_reference["num_scored_tokens"].to_numpy()):
        raise ScoreJoinError(
            f"labels {labels.corpus_id} have other scored tokens under the teacher than under the reference; run `miniplm score CONFIG --model teacher --again`"
        )
    return ScoredLabels(
        sequence_ids=by_reference["sequence_id"].to_numpy(),
        num_scored_tokens=counts,
        teacher_nll_sum=by_teacher["nll_sum"].to_numpy(),
        reference_nll_sum=by_reference["nll_sum"].to_numpy(),
    )


def _read_features(
    storage: Storage,
    labels: CorpusManifest,
    scored: ScoredLabels,
    config: ProxyConfig,
    pool: PoolStates | None,
    on_progress: ProgressCallback,
) -> tuple[NDArray[np.int64], list[str], sp.csr_matrix | None, Floats]:
    """The labels that are fitted, as places in `scored` (num_fitted,), their domains, n-grams (num_fitted, F) and columns (num_fitted, D)."""
    num_tokens = sum(shard.num_tokens for shard in labels.shards)
    # Thinned by a hash of their ids, not cut off: the last shards are of other sources than the first.
    wanted = hash_ids(scored.sequence_ids, config.seed + 2) < _MOST_TOKENS[config.scorer] / max(1, num_tokens)
    wanted &= scored.num_scored_tokens > 0
    parts = list(_read_parts(storage, labels, scored, wanted, pool, on_progress))
    ngrams = [part for _, _, part, _ in parts if part is not None]
    return (
        np.concatenate([rows for rows, *_ in parts]),
        [domain for _, domains, *_ in parts for domain in domains],
        sp.vstack(ngrams, format="csr") if ngrams else None,
        np.concatenate([columns for *_, columns in parts]),
    )


def _read_parts(
    storage: Storage,
    labels: CorpusManifest,
    scored: ScoredLabels,
    wanted: NDArray[np.bool_],
    pool: PoolStates | None,
    on_progress: ProgressCallback,
) -> Iterator[tuple[NDArray[np.int64], list[str], sp.csr_matrix | None, Floats]]:
    """The same of each shard of labels, of those that are `wanted` (N,)."""
    shards = labels.split_shards("candidate")
    first = 0
    for done, shard in enumerate(shards, start=1):
        mask = wanted[first : first + shard.num_sequences]
        rows = first + np.flatnonzero(mask)
        first += shard.num_sequences
        table = read_shard(storage, shard, columns=["sequence_id", "domain", "token_ids"]).filter(pa.array(mask))
        nll = scored.reference_nll_sum[rows] / scored.num_scored_tokens[rows]
        ngrams, columns = read_columns(read_token_ids(table), nll, pool)
        yield rows, table["domain"].cast(pa.string()).to_pylist(), ngrams, columns
        on_progress(Progress("fit proxy", done, len(shards), "shards"))


def _publish_weights(storage: Storage, proxy_id: str, fitted: Ridge, scale: Scale) -> str:
    arrays: dict[str, NDArray[Any]] = {
        "weights": fitted.weights,
        "bias": np.array([fitted.bias]),
        "means": scale.means,
        "deviations": scale.deviations,
    }
    with storage.publish(layout.proxy_weights(proxy_id)) as path:
        save_file(arrays, path)
        return digest_file(path)
