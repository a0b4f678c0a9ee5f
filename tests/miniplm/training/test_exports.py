"""A finished student as a folder: whole or not there, and another one's files never among its own."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from miniplm.errors import StorageError, TrainingError
from miniplm.models.files import list_weight_files
from miniplm.models.identity import digest_weights
from miniplm.records.manifests import CheckpointMetrics, TrainingManifest
from miniplm.storage.root import Storage
from miniplm.training.checkpoints import list_checkpoint_steps
from miniplm.training.exports import export_model, find_export
from miniplm.training.loop import train_model
from tests.miniplm.made_trainings import make_plan, make_training_corpus

TARGET = "runs/r/students/s"


def train(storage: Storage, **training: Any) -> TrainingManifest:
    return train_model(storage, make_plan(make_training_corpus(storage), **{"steps": 2, **training}))


def test_exported_student_loads_and_is_what_was_trained(storage: Storage) -> None:
    manifest = train(storage)
    export_model(storage, manifest, TARGET)
    folder = Path(storage.path(TARGET))
    names = {path.name for path in folder.iterdir()}
    assert names == {*manifest.files, "training.json", "README.md"}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl"} <= names
    assert "optimizer.safetensors" not in names
    assert digest_weights(list_weight_files(folder)) == manifest.weights_digest
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest.num_parameters
    # transformers would give a Qwen2 model Qwen2's splitting rules, whatever its tokenizer.json says.
    for trust_remote_code in (False, True):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        assert tokenizer("w5 w6")["input_ids"] == [5, 6]
        assert tokenizer.eos_token_id == 0
    rows = [CheckpointMetrics.model_validate_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row.step for row in rows] == [1, 2]
    assert find_export(storage, TARGET) == manifest


def test_exporting_again_writes_nothing_and_keeps_what_was_added(storage: Storage) -> None:
    manifest = train(storage)
    export_model(storage, manifest, TARGET)
    storage.write_json(f"{TARGET}/evaluation.json", {"loss": 1})
    before = {path.name: path.stat().st_mtime_ns for path in Path(storage.path(TARGET)).iterdir()}
    export_model(storage, manifest, TARGET)
    assert {path.name: path.stat().st_mtime_ns for path in Path(storage.path(TARGET)).iterdir()} == before


def test_another_student_of_the_name_is_replaced_whole(storage: Storage) -> None:
    first, second = train(storage), train(storage, seed=1)
    export_model(storage, first, TARGET)
    storage.write_json(f"{TARGET}/evaluation.json", {"loss": 1})
    export_model(storage, second, TARGET)
    assert find_export(storage, TARGET) == second
    assert not storage.exists(f"{TARGET}/evaluation.json")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "training.json"])
def test_damaged_export_is_made_again(storage: Storage, name: str) -> None:
    manifest = train(storage)
    export_model(storage, manifest, TARGET)
    path = Path(storage.path(f"{TARGET}/{name}"))
    path.write_bytes(path.read_bytes()[:-9])
    assert find_export(storage, TARGET) is None
    export_model(storage, manifest, TARGET)
    assert find_export(storage, TARGET) == manifest


@pytest.mark.parametrize("num_files", range(6))
def test_half_a_copy_is_no_model(storage: Storage, num_files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    export_model(storage, train(storage), TARGET)
    second = train(storage, seed=1)
    original, done = Storage.publish, 0

    def failing(self: Storage, relative: str) -> Any:
        nonlocal done
        if relative.startswith(TARGET):
            if done == num_files:
                raise KeyboardInterrupt
            done += 1
        return original(self, relative)

    monkeypatch.setattr(Storage, "publish", failing)
    with pytest.raises(KeyboardInterrupt):
        export_model(storage, second, TARGET)
    monkeypatch.undo()
    assert find_export(storage, TARGET) is None
    with pytest.raises((OSError, ValueError), match=r"config\.json|Repo id"):
        AutoModelForCausalLM.from_pretrained(storage.path(TARGET))
    export_model(storage, second, TARGET)
    assert find_export(storage, TARGET) == second


def test_checkpoint_that_is_gone_or_damaged_is_not_exported(storage: Storage) -> None:
    manifest = train(storage)
    weights = Path(storage.path(f"{manifest.checkpoint}/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(TrainingError, match=r"model\.safetensors is damaged: run the training again"):
        export_model(storage, manifest, TARGET)
    weights.unlink()
    with pytest.raises(TrainingError, match=r"model\.safetensors is missing: run the training again"):
        export_model(storage, manifest, TARGET)
    assert find_export(storage, TARGET) is None


def test_full_disk_in_a_checkpoint_keeps_the_one_before(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    original, num_saved = PreTrainedModel.save_pretrained, 0

    def failing(self: PreTrainedModel, folder: str, **options: Any) -> None:
        nonlocal num_saved
        num_saved += 1
        if num_saved == 2:
            Path(folder, "model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, folder, **options)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", failing)
    plan = make_plan(make_training_corpus(storage), steps=6, checkpoint_every_steps=2)
    with pytest.raises(StorageError, match=r"step-00000004: no space left.*run the same command again"):
        train_model(storage, plan)
    assert list_checkpoint_steps(storage, plan.training_id) == [2]
    assert train_model(storage, plan).num_steps == 6
