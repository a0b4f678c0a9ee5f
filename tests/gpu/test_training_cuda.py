"""A training on a CUDA device: compiled as in eager, resumed to the last bit, without waiting for the device in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miniplm.config.run import TrainingConfig
from miniplm.models.architectures import build_model
from miniplm.models.nll import Head, add_product, sum_nll_of_hidden, sums_in_product
from miniplm.progress import Progress
from miniplm.storage.root import Storage
from miniplm.training.checkpoints import read_metrics
from miniplm.training.distillation_loss import sum_distillation_loss
from miniplm.training.loop import train_model
from miniplm.training.losses import sum_language_model_loss
from miniplm.training.optimization import Optimization
from miniplm.training.recipe import plan_training
from tests.ends import Interrupted
from tests.miniplm.made_trainings import EOS, VOCAB_SIZE, make_sequences, make_training_corpus

pytestmark = pytest.mark.gpu


def make_optimization(dtype: str, compile: bool) -> Optimization:
    config = TrainingConfig(steps=5, batch_size=8, micro_batch_size=2, learning_rate=1e-2, warmup_steps=0, compile=compile)
    model = build_model("qwen-tiny", VOCAB_SIZE, 17, seed=1).to("cuda")
    return Optimization(model, sum_language_model_loss, config, dtype, EOS, max_tokens=17)


def make_batch() -> list[np.ndarray]:
    return [np.array(sequence, np.uint16) for sequence in make_sequences(8)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("compile", [True, False])
def test_loss_of_a_step_is_that_of_the_cpu(dtype: str, tolerance: float, compile: bool) -> None:
    config = TrainingConfig(steps=5, batch_size=8, learning_rate=1e-2, warmup_steps=0)
    exact = Optimization(build_model("qwen-tiny", VOCAB_SIZE, 17, seed=1), sum_language_model_loss, config, "float32", EOS)
    wanted = exact.compute_gradient(make_batch())
    result = make_optimization(dtype, compile).compute_gradient(make_batch())
    assert result.loss == pytest.approx(wanted.loss, abs=tolerance)
    assert result.gradient_norm == pytest.approx(wanted.gradient_norm, rel=10 * tolerance)


def test_micro_batches_do_not_wait_for_the_device() -> None:
    optimization = make_optimization("bfloat16", compile=False)
    batch = optimization.prepare(make_batch())
    optimization.apply(batch, 1e-2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for part in batch.micro_batches:
            optimization._parallel.add_gradient(part.to(optimization.device), batch.num_scored, is_last=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("gradient_scale", [None, 0.25])
@pytest.mark.parametrize("block_tokens", [None, 100])
def test_fused_head_agrees_with_float64(block_tokens: int | None, gradient_scale: float | None) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(5000, 64, device="cuda") * 0.2).requires_grad_()
    hidden = torch.randn(333, 64, device="cuda").requires_grad_()
    targets = torch.randint(0, 5000, (333,), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        total = sum_nll_of_hidden(Head(weight), hidden, targets, block_tokens, gradient_scale)
    total.backward()
    exact_weight, exact_hidden = (tensor.detach().double().requires_grad_() for tensor in (weight, hidden))
    exact = torch.nn.functional.cross_entropy(exact_hidden @ exact_weight.T, targets, reduction="sum")
    ((gradient_scale or 1.0) * exact).backward()
    assert total.item() == pytest.approx(exact.item(), rel=2e-3)
    for ours, theirs in ((weight, exact_weight), (hidden, exact_hidden)):
        difference = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert difference < 2e-2


def test_adding_in_the_product_does_not_round_the_sums() -> None:
    torch.manual_seed(0)
    total, left, right = (
        1e3 * torch.randn(64, 32, device="cuda"),
        torch.randn(64, 48, device="cuda"),
        torch.randn(48, 32, device="cuda"),
    )
    left, right = left.bfloat16(), right.bfloat16()
    exact = total.double() + 0.5 * left.double() @ right.double()
    assert sums_in_product(left, total)
    add_product(total, left, right, 0.5, in_product=True)
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("block_tokens", [None, 100])
def test_fused_distillation_agrees_with_float64(block_tokens: int | None) -> None:
    torch.manual_seed(0)
    weight, hidden = (
        (torch.randn(5000, 64, device="cuda") * 0.2).requires_grad_(),
        torch.randn(333, 64, device="cuda").requires_grad_(),
    )
    teacher_weight, teacher_hidden = (
        torch.randn(4900, 96, device="cuda").bfloat16() * 0.2,
        torch.randn(333, 96, device="cuda").bfloat16(),
    )
    targets = torch.randint(0, 4900, (333,), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        total = sum_distillation_loss(Head(weight), hidden, targets, Head(teacher_weight), teacher_hidden, 0.5, block_tokens, 0.25)
    total.backward()
    exact_weight, exact_hidden = (tensor.detach().double().requires_grad_() for tensor in (weight, hidden))
    log_student = torch.log_softmax(exact_hidden @ exact_weight.T, 1)
    teacher = torch.softmax(teacher_hidden.double() @ teacher_weight.double().T, 1)
    divergence = torch.nn.functional.kl_div(log_student[:, :4900], teacher, reduction="sum")
    exact = 0.5 * torch.nn.functional.nll_loss(log_student, targets, reduction="sum") + 0.5 * divergence
    (0.25 * exact).backward()
    assert total.item() == pytest.approx(exact.item(), rel=5e-3)
    for ours, theirs in ((weight, exact_weight), (hidden, exact_hidden)):
        assert (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm() < 2e-2


def test_sequences_a_pass_are_chosen_and_halved_where_memory_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    config = TrainingConfig(steps=2, batch_size=16, learning_rate=1e-2, warmup_steps=0)
    optimizations = []
    for most in (16, 8):

        def loss(body: Any, head: Any, batch: Any, gradient_scale: float | None, most: int = most) -> torch.Tensor:
            if len(batch.lengths) > most:
                torch.empty(1 << 50, device="cuda")
            return sum_language_model_loss(body, head, batch, gradient_scale)

        model = build_model("qwen-tiny", VOCAB_SIZE, 17, seed=1).to("cuda")
        optimizations.append(Optimization(model, loss, config, "bfloat16", EOS, max_tokens=17))
    assert [optimization.micro_batch_size for optimization in optimizations] == [16, 16]
    batch = [np.array(sequence, np.uint16) for sequence in make_sequences(16)]
    whole, halved = (optimization.take_step(batch, 1e-2) for optimization in optimizations)
    assert [optimization.micro_batch_size for optimization in optimizations] == [16, 8]
    assert halved.loss == pytest.approx(whole.loss, rel=1e-3)
    assert "memory ran out with 16 sequences a forward pass" in caplog.text


def test_interrupted_gives_the_losses_and_weights_of_an_undisturbed_run(tmp_path: Path) -> None:
    results = []
    for name, stop in (("undisturbed", -1), ("interrupted", 3)):
        storage = Storage(str(tmp_path / name))
        settings: dict[str, Any] = {"steps": 6, "batch_size": 4, "warmup_steps": 0, "checkpoint_every_steps": 2}
        plan = plan_training(make_training_corpus(storage), "reference", "qwen-tiny", TrainingConfig(**settings), device="cuda")

        def interrupt(progress: Progress, stop: int = stop) -> None:
            if progress.done == stop:
                raise Interrupted

        if stop >= 0:
            with pytest.raises(Interrupted):
                train_model(storage, plan, interrupt)
        manifest = train_model(storage, plan)
        losses = [row.loss for row in read_metrics(storage, manifest.training_id, 6)]
        results.append((manifest.weights_digest, losses))
    assert results[0] == results[1]
