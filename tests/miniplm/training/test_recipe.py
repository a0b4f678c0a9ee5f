"""The id of a training: changed by all that changes its numbers, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from miniplm.config.run import TrainingConfig
from miniplm.errors import ConfigError, TrainingError
from miniplm.records.manifests import CorpusManifest
from miniplm.storage.root import Storage
from miniplm.training.recipe import TrainingRecipe, plan_training
from tests.miniplm.made_trainings import make_plan, make_selection, make_training_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusManifest:
    return make_training_corpus(Storage(str(tmp_path)))


def test_id_reads_as_method_and_architecture_and_recipe_is_kept_as_json(corpus: CorpusManifest) -> None:
    plan = make_plan(corpus)
    assert plan.training_id.startswith("reference-qwen-tiny-")
    assert make_plan(corpus).training_id == plan.training_id
    assert TrainingRecipe.model_validate(plan.recipe.as_json()) == plan.recipe
    assert (plan.recipe.vocab_size, plan.recipe.max_positions, plan.recipe.training["dtype"]) == (64, 17, "float32")
    assert plan.recipe.training["micro_batch_size"] == 4


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 7},
        {"epochs": 1},
        {"batch_size": 8},
        {"micro_batch_size": 2},
        {"learning_rate": 2e-2},
        {"min_learning_rate_ratio": 0.2},
        {"warmup_steps": 3},
        {"weight_decay": 0.0},
        {"beta1": 0.8},
        {"beta2": 0.9},
        {"epsilon": 1e-8},
        {"clip_norm": 2.0},
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"schedule": "warmup-stable-decay"},
    ],
)
def test_what_changes_the_numbers_changes_the_id(corpus: CorpusManifest, change: dict[str, Any]) -> None:
    assert make_plan(corpus, **change).training_id != make_plan(corpus).training_id


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_every_steps": 5},
        {"keep_checkpoints": 7},
        {"milestone_every_steps": 2},
        {"processes": 2},
        {"sharding": "fsdp"},
        {"compile": True},
        {"wandb_project": "mine"},
        {"dtype": "float32"},
        {"micro_batch_size": 4},
        {"decay_share": 0.5},  # of a schedule that is not used
    ],
)
def test_what_leaves_the_numbers_leaves_the_id(corpus: CorpusManifest, change: dict[str, Any]) -> None:
    assert make_plan(corpus, **change).training_id == make_plan(corpus).training_id


def test_the_share_of_decay_changes_the_id_where_it_is_used(corpus: CorpusManifest) -> None:
    half = make_plan(corpus, schedule="warmup-stable-decay", decay_share=0.5)
    assert half.training_id != make_plan(corpus, schedule="warmup-stable-decay").training_id


def test_every_field_of_the_training_configuration_is_tested_here() -> None:
    assert set(TrainingConfig.model_fields) == {
        *("schedule", "decay_share", "milestone_every_steps", "processes", "sharding", "compile", "wandb_project"),
        *("steps", "epochs", "batch_size", "micro_batch_size", "learning_rate", "min_learning_rate_ratio", "warmup_steps"),
        *("weight_decay", "beta1", "beta2", "epsilon", "clip_norm", "seed", "dtype", "checkpoint_every_steps", "keep_checkpoints"),
    }


def test_data_architecture_and_vocabulary_change_the_id(tmp_path: Path, corpus: CorpusManifest) -> None:
    storage = Storage(str(tmp_path))
    training = TrainingConfig(steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=2)

    def training_id(
        corpus: CorpusManifest = corpus, architecture: str = "qwen-tiny", method: str = "miniplm", **options: Any
    ) -> str:
        options.setdefault("selection", first)
        return plan_training(corpus, method, architecture, training, device="cpu", **options).training_id

    first = make_selection(storage, corpus, ([1], [2], [3]), "first")
    second = make_selection(storage, corpus, ([1], [2], [4]), "second")
    ids = [
        training_id(),
        training_id(method="pretrain"),
        training_id(method="pretrain", selection_seed=1),
        training_id(selection=second),
        training_id(vocab_size=100),
        training_id(architecture="qwen-104m"),
        training_id(corpus.model_copy(update={"sequence_length": 20})),
        training_id(corpus.model_copy(update={"shards": corpus.shards[1:]})),
    ]
    assert len(set(ids)) == len(ids)


def test_folder_of_the_architecture_may_lie_elsewhere(tmp_path: Path, corpus: CorpusManifest) -> None:
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    training = TrainingConfig(steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=2)
    ids = []
    for parent in ("a", "b"):
        config.save_pretrained(tmp_path / parent / "llama-small")
        ids.append(plan_training(corpus, "reference", str(tmp_path / parent / "llama-small"), training, device="cpu").training_id)
    assert ids[0] == ids[1]
    assert ids[0].startswith("reference-llama-")


def test_a_dtype_that_cannot_be_trained_in_is_refused(corpus: CorpusManifest) -> None:
    with pytest.raises(ConfigError, match=r"training\.dtype is float16"):
        make_plan(corpus, dtype="float16")


def test_unknown_method_is_refused(corpus: CorpusManifest) -> None:
    with pytest.raises(ConfigError, match=r"no training method 'distil'; give one of miniplm, .*pretrain, reference"):
        make_plan(corpus, method="distil")


def test_vocabulary_without_room_is_refused(corpus: CorpusManifest) -> None:
    with pytest.raises(ConfigError, match="vocab_size is 63"):
        plan_training(corpus, "reference", "qwen-tiny", TrainingConfig(epochs=1, learning_rate=1e-3), vocab_size=63, device="cpu")


def test_method_that_needs_a_selection_is_refused_without(corpus: CorpusManifest) -> None:
    with pytest.raises(TrainingError, match="'miniplm' trains on a selection"):
        make_plan(corpus, method="miniplm")
