"""Vanilla knowledge distillation: the data of another method, learnt from the teacher's token distributions too.

loss = (1 - a) * cross entropy + a * KL(teacher || student), by a teacher that runs along (arXiv 2410.17215, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from miniplm.derived.sequences import TrainingShard
from miniplm.derived.sets import DerivedJob
from miniplm.storage.root import Storage
from miniplm.training.losses import LossFunction, make_distillation_loss
from miniplm.training.methods.method import MethodInputs, TrainingMethod
from miniplm.training.teacher import check_teacher, open_teacher


class VanillaKdMethod(TrainingMethod):
    """`name` on the sequences that `data` chooses."""

    needs_teacher = True

    def __init__(self, name: str, data: TrainingMethod) -> None:
        self._name = name
        self._data = data

    def describe_data(self, inputs: MethodInputs) -> dict[str, Any]:
        """Raises `TrainingError` where the teacher is missing or has other tokens than the corpus."""
        inputs.require_selection(self._name)
        teacher = inputs.require_teacher(self._name)
        check_teacher(teacher, inputs.corpus, self._name)
        return self._data.describe_data(inputs) | {
            "kl_weight": inputs.distillation.kl_weight,
            "teacher": {
                "model_id": teacher.model_id,
                "weights_digest": teacher.weights_digest,
                "dtype": teacher.dtype,
                "num_parameters": teacher.num_parameters,
            },
        }

    def list_derived_jobs(self, inputs: MethodInputs) -> Sequence[DerivedJob]:
        return self._data.list_derived_jobs(inputs)

    def list_shards(self, storage: Storage, inputs: MethodInputs) -> list[TrainingShard]:
        return self._data.list_shards(storage, inputs)

    def make_loss(self, storage: Storage, inputs: MethodInputs, device: torch.device, compile: bool = False) -> LossFunction:
        """Loads the teacher; what it raises is that of `open_teacher`."""
        teacher = open_teacher(storage, inputs.require_teacher(self._name), inputs.corpus, self._name, device)
        return make_distillation_loss(teacher, inputs.distillation.kl_weight, compile)
