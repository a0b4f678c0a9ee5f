"""Sequences a pass: chosen for a GPU by work and memory, halved where memory runs out, and never a reason for other numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miniplm.config.run import TrainingConfig
from miniplm.models.architectures import build_model
from miniplm.models.loading import split_head
from miniplm.models.nll import Head
from miniplm.storage.root import Storage
from miniplm.training import optimization as optimization_module
from miniplm.training.checkpoints import find_checkpoint
from miniplm.training.data import MicroBatch
from miniplm.training.loop import train_model
from miniplm.training.losses import sum_language_model_loss
from miniplm.training.micro_batches import choose_micro_batch_size, choose_on_device, count_activation_bytes
from miniplm.training.optimization import Optimization
from tests.miniplm.made_trainings import EOS, VOCAB_SIZE, make_plan, make_sequences, make_training_corpus

GIB = 1 << 30
AUTO = TrainingConfig(steps=1)


def measure_saved_bytes(model: Any, num_rows: int, num_tokens: int, dtype: str) -> int:
    """Bytes of all that a forward pass of the body keeps for the backward pass, weights left out."""
    body, _ = split_head(model)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    token_ids = torch.ones(num_rows, num_tokens, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        kept = body(input_ids=token_ids, use_cache=False).last_hidden_state
    assert kept.requires_grad
    return sum(num_bytes for num_bytes, _ in saved.values())


@pytest.mark.parametrize("architecture", ["qwen-tiny", "qwen-104m"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_estimate_of_a_token_covers_what_is_saved_for_it_and_little_more(architecture: str, dtype: str) -> None:
    model = build_model(architecture, 64, 33, seed=0)
    # What one row more costs: weights rounded to bfloat16 are saved once, whatever the rows.
    measured = (measure_saved_bytes(model, 2, 32, dtype) - measure_saved_bytes(model, 1, 32, dtype)) / 32
    assert 1.0 <= count_activation_bytes(model, dtype) / measured <= (1.1 if dtype == "bfloat16" else 1.5)


@pytest.mark.parametrize(
    ("architecture", "free_gib", "wanted"),
    [
        ("qwen-200m", 78, 32),  # as measured
        ("qwen-104m", 78, 64),
        ("qwen-500m", 78, 16),
        ("qwen-1.2b", 78, 8),
        ("qwen-200m", 22, 16),
        ("qwen-200m", 6, 8),
    ],
)
def test_a_pass_has_enough_work_and_fits(architecture: str, free_gib: int, wanted: int) -> None:
    with torch.device("meta"):
        model = build_model(architecture, 151936, 1025, seed=0)
    assert choose_micro_batch_size(AUTO, model, 1024, "bfloat16", free_gib * GIB) == wanted


def test_shorter_sequences_share_a_pass_in_greater_number_up_to_the_share_of_a_process() -> None:
    with torch.device("meta"):
        model = build_model("qwen-200m", 151936, 1025, seed=0)

    def choose(batch_size: int, num_inputs: int = 1024, num_processes: int = 1, **fields: Any) -> int:
        config = TrainingConfig(steps=1, batch_size=batch_size, **fields)
        return choose_micro_batch_size(config, model, num_inputs, "bfloat16", 78 * GIB, num_processes)

    assert choose(512, 256) == 128
    assert choose(64, 256, num_processes=2) == 32
    assert choose(480) == 40
    assert choose(48) == 24
    assert choose(6) == 6
    assert choose(13) == 13
    assert choose(127) == 32  # a prime: three passes of 32 and one of 31
    assert choose(512, micro_batch_size=4) == 4


def test_on_a_cpu_it_is_what_it_always_was() -> None:
    model = build_model("qwen-tiny", VOCAB_SIZE, 17, seed=0)
    config = TrainingConfig(steps=1, batch_size=512)
    assert choose_on_device(config, model, 16, "float32", torch.device("cpu")) == config.resolve_micro_batch_size() == 8


def make_optimization(loss: Any = sum_language_model_loss, **fields: Any) -> Optimization:
    config = TrainingConfig(**{"steps": 5, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0, **fields})
    return Optimization(build_model("qwen-tiny", VOCAB_SIZE, 17, seed=1), loss, config, "float32", EOS, max_tokens=17)


def make_batch(seed: int = 0) -> list[np.ndarray]:
    return [np.array(sequence, np.uint16) for sequence in make_sequences(8, seed)]


def hungry_loss(most: int) -> Any:
    """Has memory for `most` sequences; runs out in the middle of a step."""

    def loss(body: torch.nn.Module, head: Head, batch: MicroBatch, gradient_scale: float | None = None) -> torch.Tensor:
        if len(batch.lengths) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum_language_model_loss(body, head, batch, gradient_scale)

    return loss


def test_where_memory_runs_out_passes_are_halved_in_words_and_the_step_is_that_of_the_shorter_passes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hungry, short = make_optimization(hungry_loss(2)), make_optimization(micro_batch_size=2)
    ahead = [hungry.prepare(make_batch(seed)) for seed in (0, 1)]  # with as many sequences as were to share a pass then
    with caplog.at_level(logging.WARNING, "miniplm"):
        found = [hungry.apply(batch, 1e-2) for batch in ahead]
    wanted = [short.take_step(make_batch(seed), 1e-2) for seed in (0, 1)]
    assert [result.loss for result in found] == pytest.approx([result.loss for result in wanted], rel=1e-6)
    assert [result.gradient_norm for result in found] == pytest.approx([result.gradient_norm for result in wanted], rel=1e-5)
    assert hungry.micro_batch_size == 2
    for ours, theirs in zip(hungry.model.parameters(), short.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    first, second = (record.message for record in caplog.records)
    assert "memory ran out with 8 sequences a forward pass (CUDA out of memory); training goes on with 4" in first
    assert "with 4 sequences" in second
    assert len(hungry.prepare(make_batch()).micro_batches) == 4


@pytest.mark.parametrize(("most", "fields"), [(0, {}), (2, {"micro_batch_size": 4})])
def test_where_halving_is_of_no_help_or_not_wanted_the_error_is_raised(most: int, fields: dict[str, Any]) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        make_optimization(hungry_loss(most), **fields).take_step(make_batch(), 1e-2)


def test_a_checkpoint_keeps_the_sequences_a_pass_and_a_gpu_goes_on_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    monkeypatch.setattr(optimization_module, "choose_on_device", lambda *arguments: 2)
    plan = make_plan(make_training_corpus(storage), steps=1, warmup_steps=0)
    assert plan.recipe.training["micro_batch_size"] == 4
    train_model(storage, plan)
    checkpoint = find_checkpoint(storage, plan.training_id, 1)
    assert checkpoint is not None
    assert checkpoint.micro_batch_size == 2
    for device, fields, wanted in (("cpu", {}, 2), ("cuda", {}, 1), ("cuda", {"micro_batch_size": 4}, 2)):
        optimization = make_optimization(**fields)
        optimization.device = torch.device(device)
        optimization.goes_on_with(1)
        assert optimization.micro_batch_size == wanted
