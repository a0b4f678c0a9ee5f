"""Scores one shard: sequences in, a score file and its manifest out; and says whether a shard is scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from miniplm import layout
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.errors import DamagedFileError, ModelError, ScoreError, first_line, list_offenders
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, DocumentScoresEntry, ModelEntry, ScoreShardManifest, ShardEntry
from miniplm.records.stored import ShardState, check_all, read_record
from miniplm.scoring.documents import publish_document_scores
from miniplm.storage.root import Storage
from miniplm.storage.tables import publish_table
from miniplm.versions import list_versions

if TYPE_CHECKING:
    from miniplm.models.throughput import Throughput
    from miniplm.scoring.engine import Scorer

ShardScoreState = ShardState[ScoreShardManifest]


class SomeScores(Protocol):
    """What a scorer gives of the sequences of a shard: `nll_sum` (num_sequences,) float64 in nats, `num_scored_tokens` (num_sequences,) int32."""

    @property
    def nll_sum(self) -> NDArray[np.float64]: ...  # (num_sequences,)
    @property
    def num_scored_tokens(self) -> NDArray[np.int32]: ...  # (num_sequences,)
    @property
    def throughput(self) -> Throughput: ...


AnyScores = TypeVar("AnyScores", bound=SomeScores)
# What is beyond it is no score: float32 NLLs of all tokens there ever were stay below. Sums and differences of scores are finite by it.
MOST_NLL_SUM = 1e100
SCORE_SCHEMA = pa.schema([("sequence_id", pa.int64()), ("num_scored_tokens", pa.int32()), ("nll_sum", pa.float64())])
# Not compressed: some 20 bytes a sequence, most of which are float64 sums, in which nothing repeats.
_PLAIN = {"compression": "none", "use_dictionary": False}


def score_shard(
    storage: Storage,
    corpus: CorpusManifest,
    shard: ShardEntry,
    entry: ModelEntry,
    scorer: Scorer,
    on_progress: ProgressCallback = ignore_progress,
    worker: str = "",
    start_seconds: float | None = None,
) -> ScoreShardManifest:
    """Scores a candidate shard and publishes `scores/CORPUS_ID/MODEL_ID/shard-N.parquet`, then its manifest.

    Columns: `sequence_id` int64, `num_scored_tokens` int32, `nll_sum` float64 (nats), rows as in the shard; beside it the
    scores of documents (`miniplm.scoring.documents`). Threads
    that share a scorer read and write while one of them computes. `worker` and `start_seconds` go into the manifest:
    which process it was, and how long it took to be ready. Raises `ScoreError` naming the sequences where a
    score is not finite (the shard's scores are then set aside under `non-finite/`), `CorpusError` where the shard is
    damaged, and what `Scorer.score` raises.
    """
    from miniplm.models.devices import describe_device

    name = layout.shard_name(shard.shard_index)
    table = read_shard(storage, shard, columns=["sequence_id", "document_ids", "token_ids"])
    sequences = read_token_ids(table)
    done_tokens = 0

    def on_tokens(num_tokens: int, throughput: Throughput) -> None:
        nonlocal done_tokens
        done_tokens += num_tokens
        on_progress(Progress(f"score {entry.model_id} {name}", done_tokens, shard.num_tokens, "tokens", throughput.describe()))

    try:
        scores = scorer.score(sequences, corpus.tokenizer.eos_token_id, on_tokens)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    return publish_shard(
        storage,
        shard,
        entry,
        table,
        scores,
        publish_document_scores,
        device=describe_device(scorer.model.device),
        engine=scorer.describe(),
        worker=worker,
        start_seconds=start_seconds,
    )


def publish_shard(
    storage: Storage,
    shard: ShardEntry,
    entry: ModelEntry,
    table: pa.Table,
    scores: AnyScores,
    publish_documents: Callable[[Storage, ShardEntry, str, pa.Table, AnyScores], DocumentScoresEntry] | None,
    *,
    device: str,
    engine: dict[str, str | int | bool],
    worker: str = "",
    start_seconds: float | None = None,
) -> ScoreShardManifest:
    """Publishes the scores of a shard, of which `table` has `sequence_id`, those of its documents where there are any, then the manifest.

    Raises `ScoreError` as `score_shard`.
    """
    name = layout.shard_name(shard.shard_index)
    sequence_ids = table["sequence_id"].to_numpy()
    columns = [pa.array(sequence_ids), pa.array(scores.num_scored_tokens), pa.array(scores.nll_sum)]
    scored = pa.Table.from_arrays(columns, schema=SCORE_SCHEMA)
    aside = layout.non_finite_scores(shard.corpus_id, entry.model_id, shard.shard_index)
    broken = sequence_ids[~(np.abs(scores.nll_sum) < MOST_NLL_SUM)]  # NaN is not less either
    if len(broken):
        publish_table(storage, aside, scored, **_PLAIN)
        raise ScoreError(
            f"{name}: {len(broken)} of {len(sequence_ids)} sequences have a non-finite NLL under model {entry.model_id}, or one beyond {MOST_NLL_SUM:g} "
            f"(sequence ids {list_offenders(broken)}); the shard's scores were set aside at {storage.url(aside)} and are not used. "
            "Score with dtype float32, or look at the sequences with `miniplm inspect RUN --id N`"
        )
    # A manifest that spoke of an older file must be gone before a new file stands in its place.
    storage.delete(layout.score_shard_manifest(shard.corpus_id, entry.model_id, shard.shard_index))
    digest, num_bytes = publish_table(
        storage, layout.score_shard(shard.corpus_id, entry.model_id, shard.shard_index), scored, **_PLAIN
    )
    documents = None if publish_documents is None else publish_documents(storage, shard, entry.model_id, table, scores)
    manifest = ScoreShardManifest(
        corpus_id=shard.corpus_id,
        model_id=entry.model_id,
        shard_index=shard.shard_index,
        shard_digest=shard.digest,
        digest=digest,
        num_bytes=num_bytes,
        num_sequences=len(sequence_ids),
        num_tokens=shard.num_tokens,
        num_scored_tokens=int(scores.num_scored_tokens.sum()),
        nll_sum=float(scores.nll_sum.sum()),
        seconds=scores.throughput.seconds,
        device=device,
        dtype=entry.dtype,
        tokens_per_second=scores.throughput.tokens_per_second,
        matmul_peak_share=scores.throughput.matmul_peak_share,
        device_wait_share=scores.throughput.device_wait_share,
        engine=engine,
        documents=documents,
        worker=worker,
        start_seconds=start_seconds,
        versions=list_versions(),
    )
    storage.write_json(layout.score_shard_manifest(shard.corpus_id, entry.model_id, shard.shard_index), manifest.as_json())
    # After the manifest: killed before it, the shard is not scored, and what was set aside still says why.
    if storage.exists(aside):
        storage.delete(aside)
    return manifest


def check_score_shard(storage: Storage, shard: ShardEntry, model_id: str) -> ShardScoreState:
    """Whether a shard is scored: its manifest is read, and its file once a process, as long as both are seen to be the same."""
    index = shard.shard_index
    relative = layout.score_shard(shard.corpus_id, model_id, index)
    manifest_path = layout.score_shard_manifest(shard.corpus_id, model_id, index)
    if not storage.is_local:  # asked whether a file is the same, a store answers no faster than it gives so small a file
        return _check_score_shard(storage, shard, relative, manifest_path)
    try:
        key = (storage.identify(manifest_path), storage.identify(relative), shard)
    except FileNotFoundError:
        return _check_score_shard(storage, shard, relative, manifest_path)
    # The identities were asked for before the files are read: one that is replaced meanwhile has another the next time.
    state = _scored.get(key) or _check_score_shard(storage, shard, relative, manifest_path)
    if state.state == "done" and key[0] and key[1]:
        _scored[key] = state
    return state


# Shards that this process has seen to be scored, by the identities of their two files.
_scored: dict[tuple[str, str, ShardEntry], ShardScoreState] = {}


def _check_score_shard(storage: Storage, shard: ShardEntry, relative: str, manifest_path: str) -> ShardScoreState:
    state = _read_state(storage, shard, manifest_path)
    if state.manifest is None:
        return state
    try:
        table = parse_scores(read_scores(storage, shard, state.manifest))
    except DamagedFileError as error:
        return ShardState(shard.shard_index, "broken", reason=str(error))
    if fault := _find_fault(table, shard):
        return ShardState(shard.shard_index, "broken", reason=fault)
    return state


def _read_state(storage: Storage, shard: ShardEntry, manifest_path: str) -> ShardScoreState:
    index = shard.shard_index
    try:
        manifest = read_record(storage, manifest_path, ScoreShardManifest)
    except FileNotFoundError:
        return ShardState(index, "missing")
    except DamagedFileError as error:
        return ShardState(index, "broken", reason=f"its manifest is damaged ({first_line(error)})")
    if manifest.shard_digest != shard.digest:
        return ShardState(index, "broken", reason="its scores are of other sequences than the corpus holds")
    return ShardState(index, "done", manifest)


def find_score_manifests(storage: Storage, corpus: CorpusManifest, model_id: str) -> list[ScoreShardManifest] | None:
    """What the manifests say of every candidate shard under one model, their files not being looked at; None where one is not good."""

    def find(shard: ShardEntry) -> ScoreShardManifest | None:
        path = layout.score_shard_manifest(shard.corpus_id, model_id, shard.shard_index)
        try:
            key = (storage.identify(path), shard) if storage.is_local else ("", shard)
        except (FileNotFoundError, NotADirectoryError):
            return None
        manifest = _manifests.get(key) or _read_state(storage, shard, path).manifest
        if manifest is not None and key[0]:
            _manifests[key] = manifest
        return manifest

    found = check_all(storage, find, corpus.split_shards("candidate"))
    manifests = [manifest for manifest in found if manifest is not None]
    return manifests if len(manifests) == len(found) else None


# Manifests that this process has read, by the identity of their file.
_manifests: dict[tuple[str, ShardEntry], ScoreShardManifest] = {}


def read_scores(storage: Storage, shard: ShardEntry, manifest: ScoreShardManifest) -> bytes:
    """The bytes of a score file (some 20 a sequence), being what its manifest says; `DamagedFileError` tells in what it is not."""
    relative = layout.score_shard(shard.corpus_id, manifest.model_id, shard.shard_index)
    try:
        content, is_held = storage.read_checked(relative, manifest.digest)
    except FileNotFoundError:
        raise DamagedFileError("its score file is gone") from None
    if len(content) != manifest.num_bytes:
        raise DamagedFileError(f"its score file has {len(content):,} bytes, its manifest says {manifest.num_bytes:,}")
    if not is_held:
        raise DamagedFileError("its score file is not what its manifest says (digests differ)")
    return content


def parse_scores(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """The rows of a score file, of all or some columns. Raises `DamagedFileError` where it has other columns than scores have, or is no
    Parquet file."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if file.schema_arrow != SCORE_SCHEMA:
            found, wanted = (
                ", ".join(f"{field.name} {field.type}" for field in schema) for schema in (file.schema_arrow, SCORE_SCHEMA)
            )
            raise DamagedFileError(f"its columns are {found or 'none'}, those of scores {wanted}")
        return file.read(columns, use_threads=False)
    except pa.ArrowException as error:
        raise DamagedFileError(f"its score file cannot be read ({first_line(error)})") from error


def check_score_shards(storage: Storage, corpus: CorpusManifest, model_id: str) -> list[ShardScoreState]:
    """The state of every candidate shard of a corpus under one model, in the order of their index."""
    return check_all(storage, lambda shard: check_score_shard(storage, shard, model_id), corpus.split_shards("candidate"))


def _find_fault(table: pa.Table, shard: ShardEntry) -> str:
    """What is wrong with the content of a score file whose digest is right; empty where nothing is."""
    sequence_ids = table["sequence_id"].to_numpy()
    wanted = np.arange(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
    if not np.array_equal(sequence_ids, wanted) and not np.array_equal(np.sort(sequence_ids), wanted):
        return f"its {len(sequence_ids)} rows ({len(np.unique(sequence_ids))} distinct sequence ids) are not one for each of the shard's {len(wanted)} sequences"
    num_broken = int((~(np.abs(table["nll_sum"].to_numpy()) < MOST_NLL_SUM)).sum())
    return f"{num_broken} of its NLLs are NULL, NaN or infinite, or beyond {MOST_NLL_SUM:g}" if num_broken else ""
