"""The baseline: ordinary language modelling on as many tokens as the selection has, drawn at random from the candidates."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.corpus.reader import read_shard
from miniplm.derived.sequences import TrainingShard
from miniplm.errors import CorpusError
from miniplm.records.manifests import ShardEntry
from miniplm.storage.root import Storage
from miniplm.training.methods.method import MethodInputs, TrainingMethod


class PretrainMethod(TrainingMethod):
    def describe_data(self, inputs: MethodInputs) -> dict[str, Any]:
        return describe_draw(inputs, "pretrain")

    def list_shards(self, storage: Storage, inputs: MethodInputs) -> list[TrainingShard]:
        return list_drawn_shards(storage, inputs, "pretrain")


def describe_draw(inputs: MethodInputs, method: str) -> dict[str, Any]:
    """What decides the draw, by content: of the selection only how many tokens it has."""
    return {
        "candidate": inputs.digest_split("candidate"),
        "num_tokens": inputs.require_selection(method).num_selected_tokens,
        "seed": inputs.seed,
    }


def list_drawn_shards(storage: Storage, inputs: MethodInputs, method: str) -> list[TrainingShard]:
    """Sequences drawn without replacement until their tokens reach those of the selection.

    Reads one number a candidate sequence, and holds two in memory.
    """
    wanted_tokens = inputs.require_selection(method).num_selected_tokens
    entries = inputs.corpus.split_shards("candidate")
    num_tokens = np.concatenate([np.zeros(0, np.int32), *(_read_num_tokens(storage, entry) for entry in entries)])
    drawn = np.sort(draw_sequences(num_tokens, wanted_tokens, inputs.seed))
    shards = []
    first = 0
    for entry in entries:
        rows = drawn[np.searchsorted(drawn, first) : np.searchsorted(drawn, first + entry.num_sequences)] - first
        shard_tokens = int(num_tokens[first : first + entry.num_sequences][rows].sum(dtype=np.int64))
        shards.append(TrainingShard(entry, len(rows), shard_tokens, partial(_give, rows)))
        first += entry.num_sequences
    return shards


def draw_sequences(num_tokens: NDArray[np.int32], wanted_tokens: int, seed: int) -> NDArray[np.int64]:
    """Indices (num_drawn,) of the first sequences, of `num_tokens` (num_sequences,), of a seeded permutation whose tokens together reach `wanted_tokens`, in drawn order."""
    # The generator by its name, as a training's id stands for this draw, and NumPy's default may change.
    order: NDArray[np.int64] = np.random.Generator(np.random.PCG64(seed)).permutation(len(num_tokens))
    reached = np.cumsum(num_tokens[order], dtype=np.int64)
    return order[: int(np.searchsorted(reached, wanted_tokens)) + 1]


def _read_num_tokens(storage: Storage, entry: ShardEntry) -> NDArray[np.int32]:
    """Tokens of each sequence of a shard, (num_sequences,)."""
    # The digest of the whole file is checked when its tokens are read for training; counts are enough here.
    num_tokens: NDArray[np.int32] = read_shard(storage, entry, columns=["num_tokens"], verify=False)["num_tokens"].to_numpy()
    if len(num_tokens) != entry.num_sequences or int(num_tokens.sum(dtype=np.int64)) != entry.num_tokens:
        raise CorpusError(
            f"candidate shard {entry.shard_index} of corpus {entry.corpus_id} is damaged: its sequences or tokens are not as many as "
            "the corpus manifest says; prepare the corpus again"
        )
    return num_tokens


def _give(rows: NDArray[np.int64]) -> NDArray[np.int64]:  # (num_rows,)
    return rows
