"""The reference tuned on target text, which makes it the teacher: what its tuning made likelier is kept (CoLoR-Filter, arXiv 2406.10670)."""

from __future__ import annotations

from typing import Any

from miniplm.derived.sequences import TrainingShard
from miniplm.errors import TrainingError
from miniplm.storage.root import Storage
from miniplm.training.methods.method import MethodInputs, TrainingMethod


class TargetMethod(TrainingMethod):
    """On all sequences of a corpus, which is the target text, by a model that starts from the reference's weights."""

    def describe_data(self, inputs: MethodInputs) -> dict[str, Any]:
        """Raises `TrainingError` where there is no model to start from."""
        if inputs.initial is None:
            raise TrainingError("the method 'target' trains a model further, and none is given")
        return {"target": inputs.digest_split("candidate"), "initial_weights": inputs.initial.weights_digest}

    def list_shards(self, storage: Storage, inputs: MethodInputs) -> list[TrainingShard]:
        shards = inputs.corpus.split_shards("candidate")
        return [TrainingShard(shard, shard.num_sequences, shard.num_tokens) for shard in shards]
