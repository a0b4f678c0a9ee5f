"""The reference model: trained on all sequences of the reference split, of a corpus that grew on those of the first one.

So an extension has the reference that scored what is there already, and nothing is trained or scored again.
"""

from __future__ import annotations

from typing import Any

from miniplm.derived.sequences import TrainingShard
from miniplm.errors import TrainingError
from miniplm.storage.root import Storage
from miniplm.training.methods.method import MethodInputs, TrainingMethod, digest_shards


class ReferenceMethod(TrainingMethod):
    def describe_data(self, inputs: MethodInputs) -> dict[str, Any]:
        return {"reference": digest_shards(inputs.corpus.root_shards("reference"))}

    def list_shards(self, storage: Storage, inputs: MethodInputs) -> list[TrainingShard]:
        """Raises `TrainingError` where the split is empty."""
        shards = [TrainingShard(shard, shard.num_sequences, shard.num_tokens) for shard in inputs.corpus.root_shards("reference")]
        if not any(shard.num_sequences for shard in shards):
            raise TrainingError(
                f"corpus {inputs.corpus.lineage[0]} has no sequence in its reference split; give corpus.splits.reference a larger share, "
                "or more text, or give reference.model"
            )
        return shards
