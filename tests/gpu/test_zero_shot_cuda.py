"""A GPU gives the accuracies that a CPU gives; there the harness finds the batch size by itself."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from miniplm.evaluation.harness import measure_task, open_tasks, open_zero_shot_model
from tests.miniplm.evaluation.test_accuracies import CHOICE, DOCUMENTS, add_task
from tests.miniplm.made_models import make_llama, save_model
from tests.miniplm.made_trainings import VOCAB_SIZE, save_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")]


def test_accuracies_on_a_gpu_are_those_on_a_cpu(tmp_path: Path) -> None:
    folder = save_model(make_llama(vocab_size=VOCAB_SIZE), tmp_path / "model")
    save_tokenizer(folder)
    add_task(tmp_path / "tasks", "choose", DOCUMENTS, **CHOICE)
    results = []
    for device in ("cpu", "cuda"):
        model = open_zero_shot_model(folder, "float32", torch.device(device))
        with open_tasks(["choose"], str(tmp_path / "tasks")) as load_task:
            results.append(measure_task(model, load_task("choose")))
    assert results[0] == results[1]
