"""Students of the other published families learn and resume, as tiny folders with what their presets say otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from miniplm.config.run import TrainingConfig
from miniplm.models.presets import PRESETS
from miniplm.progress import Progress
from miniplm.records.manifests import TrainingManifest
from miniplm.storage.root import Storage
from miniplm.training.checkpoints import read_metrics
from miniplm.training.loop import train_model
from miniplm.training.recipe import plan_training
from tests.ends import Interrupted
from tests.miniplm.made_trainings import make_training_corpus

TINY: dict[str, dict[str, Any]] = {
    "llama-3.1-212m": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4},
    "mamba-130m": {"hidden_size": 32, "time_step_rank": 2, "state_size": 4},
}


def write_family(folder: Path, preset: str) -> str:
    folder.mkdir()
    content = PRESETS[preset].describe() | {"num_hidden_layers": 2} | TINY[preset]
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


def train(root: Path, architecture: str, interrupted_at: int | None = None) -> tuple[Storage, TrainingManifest]:
    def on_progress(progress: Progress) -> None:
        if progress.done == interrupted_at:
            raise Interrupted

    storage = Storage(str(root))
    training = TrainingConfig(steps=24, batch_size=4, learning_rate=2e-2, warmup_steps=2, checkpoint_every_steps=8)
    plan = plan_training(make_training_corpus(storage), "reference", architecture, training, device="cpu")
    if interrupted_at is not None:
        with pytest.raises(Interrupted):
            train_model(storage, plan, on_progress)
    return storage, train_model(storage, plan)


@pytest.mark.parametrize("preset", TINY)
def test_family_learns_and_an_interruption_changes_nothing(tmp_path: Path, preset: str) -> None:
    architecture = write_family(tmp_path / "family", preset)
    histories = []
    for name, step in (("undisturbed", None), ("interrupted", 11)):
        storage, manifest = train(tmp_path / name, architecture, step)
        rows = read_metrics(storage, manifest.training_id, manifest.num_steps)
        histories.append((manifest.weights_digest, [(row.loss, row.gradient_norm) for row in rows]))
    assert histories[0] == histories[1]
    losses = [loss for loss, _ in histories[0][1]]
    assert losses[0] == pytest.approx(np.log(64), abs=0.5)
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    model = AutoModelForCausalLM.from_pretrained(storage.path(manifest.checkpoint))
    assert model.config.model_type == preset.split("-")[0]
    assert model(input_ids=torch.tensor([[1, 4, 7]])).logits.shape == (1, 3, 64)
