"""The reference model: trained on all sequences of the reference split."""

from __future__ import annotations

from typing import Any

from miniplm.errors import TrainingError
from miniplm.storage import Storage
from miniplm.training.data import TrainingShard
from miniplm.training.methods.method import MethodInputs, TrainingMethod


class ReferenceMethod(TrainingMethod):
    def describe_data(self, inputs: MethodInputs) -> dict[str, Any]:
        return {"reference": inputs.digest_split("reference")}

    def list_shards(self, storage: Storage, inputs: MethodInputs) -> list[TrainingShard]:
        """Raises `TrainingError` where the split is empty."""
        shards = [TrainingShard(shard, shard.num_sequences, shard.num_tokens) for shard in inputs.corpus.split_shards("reference")]
        if not any(shard.num_sequences for shard in shards):
            raise TrainingError(
                f"corpus {inputs.corpus.corpus_id} has no sequence in its reference split; give corpus.splits.reference a larger share, "
                "or more text, or give reference.model"
            )
        return shards
