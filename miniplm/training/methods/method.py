"""What a training method decides: which sequences are trained on, and what is minimised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from miniplm.config.run import DistillationConfig, GenerationConfig
from miniplm.derived.sequences import TrainingShard
from miniplm.derived.sets import DerivedJob
from miniplm.errors import TrainingError
from miniplm.records.manifests import CorpusManifest, ModelEntry, ShardEntry, Split
from miniplm.records.selections import SelectionManifest
from miniplm.storage.root import Storage, digest_content
from miniplm.training.losses import LossFunction, sum_language_model_loss


@dataclass(frozen=True)
class MethodInputs:
    """What a method may choose from.

    `seed` is that of the selection's random draws, `teacher` the model as it scores the corpus, `initial` the model whose weights are trained further.
    """

    corpus: CorpusManifest
    selection: SelectionManifest | None = None
    seed: int = 0
    teacher: ModelEntry | None = None
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    initial: ModelEntry | None = None

    def require_selection(self, method: str) -> SelectionManifest:
        """The selection; `TrainingError` where there is none, or one of another corpus."""
        if self.selection is None:
            raise TrainingError(
                f"the method {method!r} trains on a selection, and there is none; make it with `miniplm select CONFIG`"
            )
        if self.selection.corpus_id != self.corpus.corpus_id:
            raise TrainingError(
                f"selection {self.selection.selection_id} is of corpus {self.selection.corpus_id}, not {self.corpus.corpus_id}; "
                "select again with `miniplm select CONFIG`"
            )
        return self.selection

    def require_teacher(self, method: str) -> ModelEntry:
        """The teacher; `TrainingError` where there is none."""
        if self.teacher is None:
            raise TrainingError(f"the method {method!r} needs the run's teacher, and none is given")
        return self.teacher

    def list_ids(self) -> dict[str, str]:
        """The ids of the artifacts that a training may use, by what they are; for people, since none of them decides a number."""
        ids = {"corpus": self.corpus.corpus_id}
        if self.selection is not None:
            ids |= {
                "selection": self.selection.selection_id,
                "teacher": self.selection.teacher_id,
                "reference": self.selection.reference_id,
            }
        ids |= {} if self.initial is None else {"initial model": self.initial.model_id}
        return ids if self.teacher is None else ids | {"teacher": self.teacher.model_id}

    def digest_split(self, split: Split) -> str:
        """A digest of all sequences of a split in their order; the same for two corpora that share them."""
        return digest_shards(self.corpus.split_shards(split))


def digest_shards(shards: Sequence[ShardEntry]) -> str:
    """A digest of all sequences of some shards in their order."""
    return digest_content([[shard.digest, shard.num_sequences] for shard in shards], length=16)


class TrainingMethod(ABC):
    """A way to train. It holds no state: one instance serves all trainings."""

    needs_teacher = False

    @abstractmethod
    def describe_data(self, inputs: MethodInputs) -> dict[str, Any]:
        """What decides the training sequences, JSON-like, by content; it becomes part of the training's id."""

    @abstractmethod
    def list_shards(self, storage: Storage, inputs: MethodInputs) -> list[TrainingShard]:
        """The training sequences, shard by shard in the order of their index."""

    def list_derived_jobs(self, inputs: MethodInputs) -> Sequence[DerivedJob]:
        """The sets that are to be made, once for all trainings, before `list_shards` can be asked; none for most methods."""
        return ()

    def make_loss(self, storage: Storage, inputs: MethodInputs, device: torch.device, compile: bool = False) -> LossFunction:
        """What is minimised; a method with a teacher loads it here, and compiles it with `compile`."""
        return sum_language_model_loss
