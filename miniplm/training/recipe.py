"""What a training is made of, and the id that follows from it: the same recipe is never trained twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from miniplm.config.run import DistillationConfig, GenerationConfig, TrainingConfig, config_as_dict
from miniplm.corpus.reader import load_corpus_tokenizer
from miniplm.derived.conversion import describe_conversion
from miniplm.derived.reader import load_derived, load_derived_tokenizer
from miniplm.derived.recipes import ConversionRecipe
from miniplm.derived.sequences import TrainingShard
from miniplm.derived.sets import list_derived_shards
from miniplm.errors import ConfigError
from miniplm.models.architectures import describe_architecture, resolve_vocab_size
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.identity import slug
from miniplm.models.presets import PRESETS
from miniplm.records.manifests import CorpusManifest, ModelEntry, Record
from miniplm.records.selections import SelectionManifest
from miniplm.storage.root import Storage, digest_content
from miniplm.tokenizers.tokenizer import CorpusTokenizer
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
    """A training that can be started: the recipe, and where its parts are found. Made by `plan_training`.

    With a tokenizer of its own the model is trained on the method's sequences as `conversion` makes them; `own_tokenizer` is
    needed to make them, not to train.
    """

    recipe: TrainingRecipe
    architecture: str
    inputs: MethodInputs
    config: TrainingConfig
    device: torch.device
    trust_remote_code: bool = False
    trust_tokenizer_code: bool = False
    own_tokenizer: CorpusTokenizer | None = None
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

    @property
    def conversion(self) -> ConversionRecipe | None:
        """How the method's sequences are encoded anew; None where the model has the corpus's tokenizer."""
        data = self.recipe.data.get("conversion")
        return None if data is None else ConversionRecipe.model_validate(data)

    def list_shards(self, storage: Storage) -> list[TrainingShard]:
        """The training sequences; `DerivedError` where they are to be derived first (`miniplm.training.needs`)."""
        conversion = self.conversion
        if conversion is None:
            return self.method.list_shards(storage, self.inputs)
        return list_derived_shards(load_derived(storage, conversion.derived_id))

    def load_tokenizer(self, storage: Storage) -> CorpusTokenizer:
        """The tokenizer that the training sequences are encoded with, from the copy beside them."""
        conversion = self.conversion
        if conversion is None:
            return load_corpus_tokenizer(storage, self.inputs.corpus.corpus_id, self.trust_tokenizer_code)
        return load_derived_tokenizer(storage, conversion.derived_id, self.trust_tokenizer_code)


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
    own_tokenizer: CorpusTokenizer | None = None,
    initial: ModelEntry | None = None,
) -> TrainingPlan:
    """The training of a fresh model of an architecture, or of the weights of `initial`, on what a method chooses; reads and writes nothing at the storage root.

    With `own_tokenizer`, unless it is the corpus's, what the method chooses is encoded anew before the training.
    Raises `ConfigError` for a method, architecture, vocabulary size or dtype that cannot be, `NoDeviceError` for a device that is not here, and
    `TrainingError` where the method needs a selection of this corpus or a teacher and there is none.
    """
    if method not in METHODS:
        raise ConfigError(f"there is no training method {method!r}; give one of {', '.join(METHODS)}")
    inputs = MethodInputs(
        corpus,
        selection,
        selection_seed,
        teacher,
        distillation or DistillationConfig(),
        generation or GenerationConfig(),
        initial,
    )
    data = METHODS[method].describe_data(inputs)
    tokenizer = corpus.tokenizer
    # Named as its own but the same: then the training is that of a student without, and has its id.
    if own_tokenizer is not None and is_tokenizer_of(corpus, own_tokenizer):
        own_tokenizer = None
    if own_tokenizer is not None:
        conversion = describe_conversion(corpus, data, own_tokenizer, corpus.sequence_length)
        tokenizer, data = own_tokenizer.entry, {"conversion": conversion.as_json()}
    where = resolve_device(device)
    recipe = TrainingRecipe(
        version=TRAINING_VERSION,
        method=method,
        architecture=describe_architecture(architecture),
        vocab_size=resolve_vocab_size(vocab_size, tokenizer.vocab_size),
        max_positions=corpus.sequence_length + 1,
        tokenizer_digest=tokenizer.digest,
        eos_token_id=tokenizer.eos_token_id,
        data=data,
        training=resolve_training(training, where),
    )
    return TrainingPlan(
        recipe,
        architecture,
        inputs,
        training,
        where,
        trust_remote_code,
        trust_tokenizer_code,
        own_tokenizer,
    )


def is_tokenizer_of(corpus: CorpusManifest, tokenizer: CorpusTokenizer) -> bool:
    """Whether a tokenizer gives the ids of a corpus, and has its separator, so that nothing is to be encoded anew for it."""
    recorded = corpus.tokenizer
    if (tokenizer.entry.digest, tokenizer.eos_token_id) != (recorded.digest, recorded.eos_token_id):
        return False
    # Corpora of earlier versions do not say by which rules they were encoded, only with which vocabulary.
    return not recorded.rules or tokenizer.full_entry.rules == recorded.rules


def resolve_training(training: TrainingConfig, device: torch.device) -> dict[str, Any]:
    """What of a training's configuration changes its numbers, with dtype and micro-batch size as they will be.

    Raises `ConfigError` for a dtype that cannot be.
    """
    dtype = resolve_dtype(training.dtype, device)
    if dtype == "float16":
        raise ConfigError("training.dtype is float16, whose small gradients vanish; use bfloat16 or float32")
    resolved = config_as_dict(training) | {"dtype": dtype, "micro_batch_size": training.resolve_micro_batch_size()}
    if training.schedule == "cosine":  # as it was before there was another, so that its trainings keep their ids
        del resolved["schedule"], resolved["decay_share"]
    return {key: value for key, value in resolved.items() if key not in _WITHOUT_EFFECT}
