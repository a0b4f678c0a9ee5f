"""MiniPLM: ordinary language modelling on the sequences that Difference Sampling kept (arXiv 2410.17215, section 2)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from miniplm import layout
from miniplm.derived.documents import DocumentsJob
from miniplm.derived.reader import load_derived
from miniplm.derived.sequences import TrainingShard
from miniplm.derived.sets import DerivedJob, list_derived_shards
from miniplm.errors import TrainingError
from miniplm.records.manifests import ShardEntry
from miniplm.records.selections import SelectionShardEntry
from miniplm.storage.root import Storage, digest_content, digest_stream
from miniplm.training.methods.method import MethodInputs, TrainingMethod


class MiniplmMethod(TrainingMethod):
    def describe_data(self, inputs: MethodInputs) -> dict[str, Any]:
        if inputs.require_selection("miniplm").unit == "document":
            return {"documents": _pack_documents(inputs).recipe.as_json()}
        return _describe_kept(inputs)

    def list_derived_jobs(self, inputs: MethodInputs) -> Sequence[DerivedJob]:
        """Kept documents are packed anew, once for all trainings."""
        return [_pack_documents(inputs)] if inputs.require_selection("miniplm").unit == "document" else []

    def list_shards(self, storage: Storage, inputs: MethodInputs) -> list[TrainingShard]:
        """Raises `TrainingError` where the selection names a shard that the corpus lacks, `DerivedError` where its documents are not packed yet."""
        selection = inputs.require_selection("miniplm")
        if selection.unit == "document":
            return list_derived_shards(load_derived(storage, _pack_documents(inputs).derived_id))
        entries = {entry.shard_index: entry for entry in inputs.corpus.split_shards("candidate")}
        unknown = [shard.shard_index for shard in selection.shards if shard.shard_index not in entries]
        if unknown:
            raise TrainingError(
                f"selection {selection.selection_id} names shard {unknown[0]}, which the corpus lacks; select again"
            )
        return [
            TrainingShard(
                entries[selected.shard_index],
                *selected.count_pass(number),
                partial(load_selected_rows, storage, selection.selection_id, selected, entries[selected.shard_index], number),
                number,
            )
            for number in selection.list_passes()
            for selected in selection.shards
        ]


def _describe_kept(inputs: MethodInputs) -> dict[str, Any]:
    """What decides which sequences or documents are kept, by content."""
    selection = inputs.require_selection("miniplm")
    return {
        "candidate": inputs.digest_split("candidate"),
        "selection": digest_content([[shard.shard_index, shard.digest] for shard in selection.shards], length=16),
    }


def _pack_documents(inputs: MethodInputs) -> DocumentsJob:
    return DocumentsJob(inputs.corpus, inputs.require_selection("miniplm"), _describe_kept(inputs))


def load_selected_rows(
    storage: Storage, selection_id: str, selected: SelectionShardEntry, entry: ShardEntry, number: int = 1
) -> NDArray[np.int64]:
    """The rows of a candidate shard that a selection kept, (num_sequences,) ascending; of a later pass those used at least so often.

    Raises `TrainingError` where the selection's file is not the one that its manifest names.
    """
    relative = layout.selection_shard(selection_id, selected.shard_index)
    content = storage.read_bytes(relative) if storage.exists(relative) else b""
    if digest_stream(io.BytesIO(content)) != selected.digest:
        raise TrainingError(
            f"{storage.url(relative)} is missing or damaged (its digest is not the one in the selection's manifest); "
            "make it again with `miniplm select CONFIG`"
        )
    table = pq.read_table(io.BytesIO(content), columns=["sequence_id", *(["repetitions"] if number > 1 else [])])
    if number > 1:
        table = table.filter(pc.greater_equal(table["repetitions"], number))
    sequence_ids = table["sequence_id"].to_numpy()
    rows: NDArray[np.int64] = np.sort(sequence_ids) - entry.first_sequence_id
    return rows
