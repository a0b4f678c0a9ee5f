"""Sequence-level distillation: ordinary language modelling on text whose ends the teacher wrote (Kim and Rush 2016, arXiv 1606.07947).

The sequences are those that `pretrain` draws; the teacher goes on from the first tokens of each (`miniplm.derived.generation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from miniplm.derived.generation import GenerationJob
from miniplm.derived.reader import load_derived
from miniplm.derived.sequences import TrainingShard
from miniplm.derived.sets import DerivedJob, list_derived_shards
from miniplm.storage.root import Storage
from miniplm.training.methods.method import MethodInputs, TrainingMethod
from miniplm.training.methods.pretrain import describe_draw, list_drawn_shards


class SeqkdMethod(TrainingMethod):
    needs_teacher = True

    def describe_data(self, inputs: MethodInputs) -> dict[str, Any]:
        """Raises `ConfigError` where the prompt is longer than a sequence, `TrainingError` where selection or teacher are missing."""
        return {"generation": _make_job(inputs).recipe.as_json()}

    def list_derived_jobs(self, inputs: MethodInputs) -> Sequence[DerivedJob]:
        return [_make_job(inputs)]

    def list_shards(self, storage: Storage, inputs: MethodInputs) -> list[TrainingShard]:
        """Raises `DerivedError` where the teacher's text is not made yet."""
        return list_derived_shards(load_derived(storage, _make_job(inputs).derived_id))


def _make_job(inputs: MethodInputs) -> GenerationJob:
    return GenerationJob(
        corpus=inputs.corpus,
        teacher=inputs.require_teacher("seqkd"),
        generation=inputs.generation,
        data=describe_draw(inputs, "seqkd"),
        list_shards=partial(list_drawn_shards, inputs=inputs, method="seqkd"),
    )
