"""What a training is made of, and the id that follows from it: the same recipe is never trained twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from miniplm.architectures import PRESETS, describe_architecture, resolve_vocab_size
from miniplm.artifacts import CorpusManifest, ModelEntry, Record, SelectionManifest
from miniplm.config import DistillationConfig, GenerationConfig, TrainingConfig, config_as_dict
from miniplm.errors import ConfigError
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.identity import slug
from miniplm.storage import digest_content
from miniplm.training.methods import METHODS, MethodInputs, TrainingMethod

# Raised when a change of the code changes the result of an unchanged recipe.
TRAINING_VERSION = 1

# What of a training's configuration leaves its numbers as they are, but for rounding.
_WITHOUT_EFFECT = {
    "checkpoint_every_steps",
    "keep_checkpoints",
    "milestone_every_steps",
    "processes",
    "sharding",
    "compile",
    "wandb_project",
}


class TrainingRecipe(Record):
    """Everything that changes the numbers of a training, by content: no name of a run or student, no path.

    `training` is the configuration with its dtype and micro-batch size resolved. The device is not in it: in the
    same dtype two devices differ by rounding only, as two processors do, and may go on with each other's checkpoints.
    """

    version: int
    method: str
    architecture: dict[str, Any]
    vocab_size: int
    max_positions: int
    tokenizer_digest: str
    eos_token_id: int
    data: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True)
class TrainingPlan:
    """A training that can be started: the recipe, and where its parts are found. Made by `plan_training`."""

    recipe: TrainingRecipe
    architecture: str
    inputs: MethodInputs
    config: TrainingConfig
    device: torch.device
    trust_remote_code: bool = False
    trust_tokenizer_code: bool = False
    training_id: str = field(init=False)

    def __post_init__(self) -> None:
        # A preset has a name of its own; of a folder or hub id only the family is content.
        architecture = (
            self.architecture if self.architecture in PRESETS else str(self.recipe.architecture.get("model_type", "model"))
        )
        name = f"{slug(self.recipe.method)}-{slug(architecture)}-{digest_content(self.recipe.as_json())}"
        object.__setattr__(self, "training_id", name)

    @property
    def method(self) -> TrainingMethod:
        return METHODS[self.recipe.method]


def plan_training(
    corpus: CorpusManifest,
    method: str,
    architecture: str,
    training: TrainingConfig,
    *,
    vocab_size: int | None = None,
    selection: SelectionManifest | None = None,
    selection_seed: int = 0,
    teacher: ModelEntry | None = None,
    distillation: DistillationConfig | None = None,
    generation: GenerationConfig | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    trust_tokenizer_code: bool = False,
) -> TrainingPlan:
    """The training of a fresh model of an architecture on what a method chooses; reads and writes nothing at the storage root.

    Raises `ConfigError` for a method, architecture, vocabulary size, dtype or device that cannot be, and
    `TrainingError` where the method needs a selection of this corpus or a teacher and there is none.
    """
    if method not in METHODS:
        raise ConfigError(f"there is no training method {method!r}; give one of {', '.join(METHODS)}")
    inputs = MethodInputs(
        corpus, selection, selection_seed, teacher, distillation or DistillationConfig(), generation or GenerationConfig()
    )
    recipe = TrainingRecipe(
        version=TRAINING_VERSION,
        method=method,
        architecture=describe_architecture(architecture),
        vocab_size=resolve_vocab_size(vocab_size, corpus.tokenizer.vocab_size),
        max_positions=corpus.sequence_length + 1,
        tokenizer_digest=corpus.tokenizer.digest,
        eos_token_id=corpus.tokenizer.eos_token_id,
        data=METHODS[method].describe_data(inputs),
        training=resolve_training(training, device),
    )
    return TrainingPlan(recipe, architecture, inputs, training, resolve_device(device), trust_remote_code, trust_tokenizer_code)


def resolve_training(training: TrainingConfig, device: str) -> dict[str, Any]:
    """What of a training's configuration changes its numbers, with dtype and micro-batch size as they will be.

    Raises `ConfigError` for a dtype or device that cannot be.
    """
    dtype = resolve_dtype(training.dtype, resolve_device(device))
    if dtype == "float16":
        raise ConfigError("training.dtype is float16, whose small gradients vanish; use bfloat16 or float32")
    resolved = config_as_dict(training) | {"dtype": dtype, "micro_batch_size": training.resolve_micro_batch_size()}
    if training.schedule == "cosine":  # as it was before there was another, so that its trainings keep their ids
        del resolved["schedule"], resolved["decay_share"]
    return {key: value for key, value in resolved.items() if key not in _WITHOUT_EFFECT}
