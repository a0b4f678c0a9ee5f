"""Which checkpoints stay, and what of other trainings' is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from miniplm import layout
from miniplm.errors import TrainingError
from miniplm.storage.root import Storage
from miniplm.training.checkpoints import MANIFEST, OPTIMIZER, find_checkpoint, find_last_checkpoint, list_checkpoint_steps
from miniplm.training.loop import find_training, train_model
from miniplm.training.recipe import TrainingPlan
from tests.miniplm.made_trainings import make_plan, make_training_corpus


def train(storage: Storage, **training: Any) -> TrainingPlan:
    plan = make_plan(make_training_corpus(storage), **training)
    train_model(storage, plan)
    return plan


def folder_of(storage: Storage, plan: TrainingPlan, step: int) -> Path:
    return Path(storage.path(layout.checkpoint_folder(plan.training_id, step)))


def test_milestones_stay_without_their_optimizer_beside_the_last_checkpoints(storage: Storage) -> None:
    plan = train(storage, steps=10, checkpoint_every_steps=4, milestone_every_steps=3, keep_checkpoints=2)
    assert list_checkpoint_steps(storage, plan.training_id) == [3, 6, 9, 10]
    for step in (3, 6, 9, 10):
        checkpoint = find_checkpoint(storage, plan.training_id, step)
        assert checkpoint is not None
        assert (OPTIMIZER in checkpoint.files) == folder_of(storage, plan, step).joinpath(OPTIMIZER).exists() == (step > 6)
    AutoModelForCausalLM.from_pretrained(folder_of(storage, plan, 3))


def test_milestones_change_nothing_of_the_training(tmp_path: Path) -> None:
    without, having = Storage(str(tmp_path / "a")), Storage(str(tmp_path / "b"))
    one, other = train(without), train(having, milestone_every_steps=1)
    assert one.training_id == other.training_id
    found = find_training(having, other.training_id), find_training(without, one.training_id)
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].weights_digest == found[1].weights_digest


def test_training_goes_on_from_a_checkpoint_with_its_optimizer_and_not_from_a_milestone(storage: Storage) -> None:
    plan = train(storage, steps=6, checkpoint_every_steps=2, milestone_every_steps=2, keep_checkpoints=1)
    recipe = plan.recipe.as_json()
    wanted = find_training(storage, plan.training_id)
    last = find_last_checkpoint(storage, plan.training_id, recipe)
    assert last is not None
    assert last.step == 6
    shutil.rmtree(folder_of(storage, plan, 6))
    assert find_last_checkpoint(storage, plan.training_id, recipe) is None
    done: list[float] = []
    again = train_model(storage, plan, lambda progress: done.append(progress.done))
    assert done[0] == 0
    assert wanted is not None
    assert again.weights_digest == wanted.weights_digest


def test_a_checkpoint_of_another_training_is_refused_with_the_fields_that_differ(storage: Storage) -> None:
    theirs, ours = train(storage, steps=4, learning_rate=5e-3), make_plan(make_training_corpus(storage), steps=6)
    shutil.copytree(folder_of(storage, theirs, 4), folder_of(storage, ours, 4))
    before = folder_of(storage, ours, 4).joinpath(MANIFEST).read_bytes()
    with pytest.raises(TrainingError) as caught:
        train_model(storage, ours)
    message = str(caught.value)
    assert f"{folder_of(storage, ours, 4)} holds a checkpoint of another training, {theirs.training_id}: " in message
    assert "training.learning_rate is 0.005 there and 0.01 here, training.steps is 4 there and 6 here. " in message
    assert "or delete the folder, and run the same command again" in message
    assert folder_of(storage, ours, 4).joinpath(MANIFEST).read_bytes() == before
    shutil.rmtree(folder_of(storage, ours, 4))
    assert train_model(storage, ours).num_steps == 6


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "a file less"])
def test_half_a_checkpoint_is_written_again(storage: Storage, damage: str) -> None:
    plan = train(storage, steps=4)
    folder = folder_of(storage, plan, 4)
    if damage == "no manifest":
        (folder / MANIFEST).unlink()
    elif damage == "half a manifest":
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:40])
    else:
        (folder / OPTIMIZER).unlink()
    assert find_training(storage, plan.training_id) is None
    done: list[float] = []
    train_model(storage, plan, lambda progress: done.append(progress.done))
    assert done[0] == 2
    assert find_checkpoint(storage, plan.training_id, 4) is not None


def test_checkpoints_of_before_they_had_a_recipe_are_gone_on_from(storage: Storage) -> None:
    plan = train(storage, steps=4)
    storage.delete(layout.training_manifest(plan.training_id))
    for step in (2, 4):
        path = folder_of(storage, plan, step) / MANIFEST
        content = json.loads(path.read_text())
        assert content.pop("recipe") == plan.recipe.as_json()
        del content["digest"], content["micro_batch_size"]
        path.write_text(json.dumps(content))
    done: list[float] = []
    train_model(storage, plan, lambda progress: done.append(progress.done))
    assert done == [4]
