"""Diversity and difficulty of what a selection kept, against as many random candidates: drawn, measured and kept beside the selection.

Shapes: N sequences, T tokens, H width of an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.corpus.reader import load_corpus_tokenizer, read_shard, read_token_ids
from miniplm.errors import CorpusError
from miniplm.records.manifests import CorpusManifest, ModelEntry, Record
from miniplm.records.selections import SelectionManifest
from miniplm.records.stored import find_record
from miniplm.selection.diversity import (
    NGRAM_SIZES,
    count_distinct_ngrams,
    cut_to_tokens,
    find_near_duplicates,
    measure_compression,
    measure_spread,
)
from miniplm.storage.root import Storage

# What bounds the cost: shards that are read, sequences of each sample, and what goes through the reference on a CPU: 64 sequences of each
# sample by 10 M parameters (7e11 FLOPs, some seconds of a core), fewer by a larger model, none where not even eight are cheap enough.
_MOST_SHARDS = 32
_MOST_SEQUENCES = 512
_MOST_EMBEDDED = 64
_FEWEST_EMBEDDED = 8
_EMBEDDED_TOKENS = 256
_EMBEDDING_FLOPS = 2e12

Embed = Callable[[Sequence[np.ndarray[Any, Any]]], np.ndarray[Any, np.dtype[np.float64]]]


class SampleDiversity(Record):
    """A sample of sequences. `distinct_ngrams[n - 1]`: distinct n-grams over all n-grams, n = 1, 2, 3, in as many tokens as the other sample.

    `compression_ratio`: bytes of text over bytes by zlib, higher is more repetitive. `near_duplicates`: share of the sample that has another in
    it with a Jaccard similarity of at least 0.8. `embedding_spread`: mean cosine distance of pairs by the reference's last hidden states, None
    where its files were not there or it is too large for a CPU. NLLs are means over sequences, nats a scored token; quantiles at 10, 50 and 90 %.
    """

    num_sequences: int
    num_tokens: int
    distinct_ngrams: tuple[float, ...]
    compression_ratio: float
    near_duplicates: float
    embedding_spread: float | None
    teacher_nll: float
    teacher_nll_quantiles: tuple[float, float, float]
    reference_nll: float


class SelectionDiversity(Record):
    """What was kept against random candidates, as many, of the same `num_shards` shards; drawn by the selection's id, so always the same."""

    selection_id: str
    num_shards: int
    num_compared_tokens: int
    num_embedded: int
    kept: SampleDiversity
    random: SampleDiversity


def find_diversity(storage: Storage, selection_id: str) -> SelectionDiversity | None:
    """What was measured of a selection before; None where nothing was."""
    return find_record(storage, layout.selection_diversity(selection_id), SelectionDiversity)


def provide_diversity(
    storage: Storage,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    reference: ModelEntry,
    trust_remote_code: bool = False,
    embeds: bool = True,
) -> SelectionDiversity:
    """Finds or measures the diversity of a selection; without the reference's files the embeddings are left out, and measured once they are there.

    `embeds` false loads no model: what was measured before is given as it is, and else the embeddings are left out. Raises `CorpusError` where a shard is damaged, `ModelError` where the reference is not what it was.
    """
    found = find_diversity(storage, selection.selection_id)
    num_embedded = count_embedded(reference.num_parameters) if embeds and _has_files(storage, reference) else 0
    if found is not None and (found.num_embedded or not num_embedded):
        return found
    embed = _make_embed(storage, reference) if num_embedded else None
    measured = measure_diversity(storage, corpus, selection, embed, num_embedded, trust_remote_code)
    storage.write_json(layout.selection_diversity(selection.selection_id), measured.as_json())
    return measured


def count_embedded(num_parameters: int) -> int:
    """How many sequences of each sample a model of that size embeds within 2e12 FLOPs (2 a parameter and token): 64 to 8, or 0."""
    affordable = int(_EMBEDDING_FLOPS / (2 * max(1, num_parameters) * _EMBEDDED_TOKENS * 2))
    return 0 if affordable < _FEWEST_EMBEDDED else min(affordable, _MOST_EMBEDDED)


def measure_diversity(
    storage: Storage,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    embed: Embed | None = None,
    num_embedded: int = 0,
    trust_remote_code: bool = False,
) -> SelectionDiversity:
    """Draws both samples (at most 512 sequences each, of at most 32 shards) and measures them.

    `embed` gives (N, H) of N sequences; `num_embedded` of each sample go through it.
    """
    seed = int.from_bytes(hashlib.sha256(selection.selection_id.encode()).digest()[:8], "big")
    generator = np.random.default_rng(seed)
    with_kept = [entry for entry in selection.shards if entry.num_sequences]
    step = -(-len(with_kept) // _MOST_SHARDS)
    chosen = with_kept[::step]
    num = min(_MOST_SEQUENCES, sum(entry.num_sequences for entry in chosen))
    candidates = {(shard.corpus_id, shard.shard_index): shard for shard in corpus.split_shards("candidate")}
    shards = [candidates[entry.corpus_id, entry.shard_index] for entry in chosen]
    # Places in the chosen shards laid end to end: among the kept sequences, and among all of them.
    kept_rows = _draw(generator, num, [entry.num_sequences for entry in chosen])
    random_rows = _draw(generator, num, [shard.num_sequences for shard in shards])
    kept, random = _Sample(), _Sample()
    for entry, shard, kept_places, random_places in zip(chosen, shards, kept_rows, random_rows, strict=True):
        path = layout.selection_shard(selection.selection_id, entry.shard_index)
        kept_ids = _read_column(storage, path, "sequence_id")[kept_places]
        table = read_shard(storage, shard, columns=["sequence_id", "token_ids"])
        sequences = read_token_ids(table)
        nlls = [
            _read_nlls(storage, shard.corpus_id, model, shard.shard_index)
            for model in (selection.teacher_id, selection.reference_id)
        ]
        kept.add(kept_ids - shard.first_sequence_id, sequences, *nlls)
        random.add(random_places, sequences, *nlls)
    tokenizer = load_corpus_tokenizer(storage, corpus.corpus_id, trust_remote_code, only_decodes=True)
    num_compared = min(kept.num_tokens, random.num_tokens)
    num_embedded = min(num_embedded, num) if embed is not None else 0
    spreads: list[float] | list[None] = [None, None]
    if embed is not None:
        starts = [sequence[:_EMBEDDED_TOKENS] for sample in (kept, random) for sequence in sample.spread_out(num_embedded)]
        embeddings = embed(starts)
        # Mean states of a language model share one large direction, which would make any two of them alike.
        embeddings = embeddings - embeddings.mean(axis=0)
        spreads = [measure_spread(half) for half in np.split(embeddings, 2)]
    told = [
        _describe(sample, num_compared, spread, tokenizer.decode) for sample, spread in zip((kept, random), spreads, strict=True)
    ]
    return SelectionDiversity(
        selection_id=selection.selection_id,
        num_shards=len(shards),
        num_compared_tokens=num_compared,
        num_embedded=num_embedded,
        kept=told[0],
        random=told[1],
    )


class _Sample:
    """Sequences as they are drawn, with their NLLs in nats a scored token."""

    def __init__(self) -> None:
        self.sequences: list[np.ndarray[Any, Any]] = []
        self.teacher_nll: list[float] = []
        self.reference_nll: list[float] = []

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.sequences))

    def add(
        self,
        rows: np.ndarray[Any, Any],
        sequences: Sequence[np.ndarray[Any, Any]],
        teacher_nll: np.ndarray[Any, Any],
        reference_nll: np.ndarray[Any, Any],
    ) -> None:
        """Takes the rows (num_rows,) of a shard, of which all sequences (T,) and NLLs (num_sequences,) are given."""
        self.sequences += [sequences[row].copy() for row in rows]
        self.teacher_nll += teacher_nll[rows].tolist()
        self.reference_nll += reference_nll[rows].tolist()

    def spread_out(self, num: int) -> list[np.ndarray[Any, Any]]:
        """So many of the sequences (T,), evenly from all shards."""
        return [self.sequences[row * len(self.sequences) // num] for row in range(num)]


def _describe(sample: _Sample, num_compared: int, spread: float | None, decode: Callable[[Any], str]) -> SampleDiversity:
    cut = cut_to_tokens(sample.sequences, num_compared)
    counts = [count_distinct_ngrams(cut, size) for size in NGRAM_SIZES]
    nlls = np.array(sample.teacher_nll)
    low, middle, high = (float(value) for value in np.quantile(nlls, [0.1, 0.5, 0.9]))
    return SampleDiversity(
        num_sequences=len(sample.sequences),
        num_tokens=sample.num_tokens,
        distinct_ngrams=tuple(distinct / max(1, total) for distinct, total in counts),
        compression_ratio=measure_compression([decode(sequence.tolist()) for sequence in sample.sequences]),
        near_duplicates=float(find_near_duplicates(sample.sequences).mean()),
        embedding_spread=spread,
        teacher_nll=float(nlls.mean()),
        teacher_nll_quantiles=(low, middle, high),
        reference_nll=float(np.mean(sample.reference_nll)),
    )


def _draw(generator: np.random.Generator, num: int, sizes: Sequence[int]) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """`num` different rows of shards of these sizes, each as likely as any other: the rows (num_rows,) of each shard, ascending."""
    places = np.sort(generator.choice(sum(sizes), size=num, replace=False)).astype(np.int64)
    ends = np.cumsum(sizes)
    return [places[(places >= end - size) & (places < end)] - (end - size) for end, size in zip(ends, sizes, strict=True)]


def _read_nlls(storage: Storage, corpus_id: str, model_id: str, shard_index: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """NLLs (num_sequences,) of a shard, nats a scored token."""
    path = layout.score_shard(corpus_id, model_id, shard_index)
    sums, counts = (_read_column(storage, path, name) for name in ("nll_sum", "num_scored_tokens"))
    return np.asarray(sums / np.maximum(counts, 1), dtype=np.float64)


def _read_column(storage: Storage, relative: str, column: str) -> np.ndarray[Any, Any]:
    """One column (num_sequences,) of a file."""
    try:
        with storage.open(relative) as file:
            return np.asarray(pq.read_table(file, columns=[column])[column].to_numpy())
    except (pa.ArrowException, FileNotFoundError) as error:
        raise CorpusError(
            f"{storage.url(relative)} cannot be read ({error}); `miniplm status CONFIG` finds what is damaged, `miniplm run CONFIG` makes it again"
        ) from error


def _has_files(storage: Storage, entry: ModelEntry) -> bool:
    """Whether a model could be opened here: a trained one lies at the storage root, a given one in its folder."""
    if entry.stored:
        return storage.exists(f"{layout.model_folder(entry.model_id)}/config.json")
    return (Path(entry.source) / "config.json").is_file()


def _make_embed(storage: Storage, entry: ModelEntry) -> Embed:
    """Opens a model on this machine's CPU: the mean of its last hidden states over a sequence's tokens."""

    def embed(sequences: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One embedding (N, H) of each sequence (T,)."""
        import torch

        from miniplm.models.loading import split_head
        from miniplm.models.opening import open_causal_model

        # float32, whatever it scored in: a CPU has no fp8, and 64 sequences cost nothing.
        model, device = open_causal_model(storage, entry.model_copy(update={"dtype": "float32"}), torch.device("cpu"))
        body, _ = split_head(model)
        rows = []
        with torch.inference_mode():
            for sequence in sequences:
                ids_1T = torch.from_numpy(sequence.astype(np.int64))[None, :].to(device)
                rows.append(body(input_ids=ids_1T, use_cache=False).last_hidden_state[0].double().mean(dim=0).numpy())
        return np.stack(rows)

    return embed
