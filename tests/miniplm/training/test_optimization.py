"""One step against float64 cross entropy and torch's own AdamW in a plain loop; micro-batches change rounding only."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from miniplm.config.run import TrainingConfig
from miniplm.models.architectures import build_model
from miniplm.models.nll import scale_gradient
from miniplm.training.losses import sum_language_model_loss
from miniplm.training.optimization import Optimization
from tests.miniplm.made_trainings import EOS, VOCAB_SIZE, make_sequences


def make_optimization(loss_function: Any = sum_language_model_loss, dtype: str = "float32", **fields: Any) -> Optimization:
    config = TrainingConfig(**{"steps": 5, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0, **fields})
    return Optimization(build_model("qwen-tiny", VOCAB_SIZE, 16, seed=1), loss_function, config, dtype, EOS)


def make_batch(num: int = 8, seed: int = 0) -> list[np.ndarray]:
    return [np.array(sequence, np.uint16) for sequence in make_sequences(num, seed)]


def oracle_loss(model: torch.nn.Module, batch: list[np.ndarray]) -> torch.Tensor:
    """Mean cross entropy of one sequence after another, without padding, targets after EOS left out."""
    total, num_scored = 0.0, 0
    for sequence in batch:
        token_ids = torch.from_numpy(sequence.astype(np.int64))
        logits = model(input_ids=token_ids[None, :-1], use_cache=False).logits[0]
        scored = token_ids[:-1] != EOS
        total = total + torch.nn.functional.cross_entropy(logits[scored], token_ids[1:][scored], reduction="sum")
        num_scored += int(scored.sum())
    return total / num_scored


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_loss_and_gradient_of_a_step_equal_float64_cross_entropy() -> None:
    optimization, batch = make_optimization(clip_norm=1e9), make_batch()
    exact = copy.deepcopy(optimization.model).double()
    result = optimization.compute_gradient(batch)
    loss = oracle_loss(exact, batch)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    assert result.num_tokens == sum(map(len, batch))
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients(exact).values()))
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    ours, theirs = gradients(optimization.model), gradients(exact)
    for name in theirs:
        torch.testing.assert_close(ours[name].double(), theirs[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_micro_batch_size_changes_rounding_only(micro_batch_size: int) -> None:
    batch = make_batch()
    whole, parts = make_optimization(micro_batch_size=8), make_optimization(micro_batch_size=micro_batch_size)
    first, second = whole.compute_gradient(batch), parts.compute_gradient(batch)
    assert second.loss == pytest.approx(first.loss, abs=1e-6)
    assert second.gradient_norm == pytest.approx(first.gradient_norm, rel=1e-5)
    ours, theirs = gradients(parts.model), gradients(whole.model)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-6, msg=name)


def test_short_batch_is_averaged_over_its_own_targets() -> None:
    optimization, batch = make_optimization(), make_batch(3)
    exact = copy.deepcopy(optimization.model).double()
    assert optimization.compute_gradient(batch).loss == pytest.approx(oracle_loss(exact, batch).item(), abs=1e-6)


def test_steps_equal_a_plain_loop_with_torch_adamw() -> None:
    optimization = make_optimization(beta1=0.8, beta2=0.95, epsilon=1e-5, weight_decay=0.1, clip_norm=0.5, micro_batch_size=2)
    model = copy.deepcopy(optimization.model)
    plain = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.1, fused=False, foreach=False)
    for step in range(5):
        batch, rate = make_batch(seed=step), 1e-3 * (step + 1)
        result = optimization.take_step(batch, rate)
        plain.zero_grad()
        loss = oracle_loss(model, batch)
        loss.backward()
        norm = torch.sqrt(sum((parameter.grad**2).sum() for parameter in model.parameters()))
        assert norm > 0.5, "the case must clip"
        for parameter in model.parameters():
            parameter.grad *= 0.5 / norm
        plain.param_groups[0]["lr"] = rate
        plain.step()
        assert result.loss == pytest.approx(loss.item(), abs=1e-4)
        assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-3)
    for (name, ours), theirs in zip(optimization.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4, msg=name)


def test_small_gradient_is_not_clipped() -> None:
    clipped, free = make_optimization(clip_norm=1e9), make_optimization(clip_norm=2e9)
    batch = make_batch()
    clipped.take_step(batch, 1e-2)
    free.take_step(batch, 1e-2)
    for ours, theirs in zip(clipped.model.parameters(), free.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_bfloat16_computes_near_float32_and_keeps_float32_weights() -> None:
    batch = make_batch()
    low, full = make_optimization(dtype="bfloat16"), make_optimization()
    assert low.take_step(batch, 1e-2).loss == pytest.approx(full.take_step(batch, 1e-2).loss, abs=0.02)
    assert {parameter.dtype for parameter in low.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_step_without_a_finite_loss_changes_neither_weights_nor_moments(bad: float) -> None:
    def sometimes_bad(body: torch.nn.Module, head: Any, batch: Any, gradient_scale: float | None) -> torch.Tensor:
        return scale_gradient(sum_language_model_loss(body, head, batch) * (bad if poisoned else 1.0), gradient_scale)

    poisoned = False
    optimization = make_optimization(sometimes_bad)
    optimization.take_step(make_batch(), 1e-2)
    weights = [parameter.clone() for parameter in optimization.model.parameters()]
    moments = [{key: value.clone() for key, value in state.items()} for state in optimization.optimizer.state.values()]
    poisoned = True
    result = optimization.take_step(make_batch(), 1e-2)
    assert not result.is_finite
    for before, after in zip(weights, optimization.model.parameters(), strict=True):
        assert torch.equal(before, after)
    for before, after in zip(moments, optimization.optimizer.state.values(), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_batch_in_which_nothing_is_scored_changes_nothing() -> None:
    optimization = make_optimization()
    weights = [parameter.clone() for parameter in optimization.model.parameters()]
    result = optimization.take_step([np.array([5], np.uint16), np.array([EOS, 5], np.uint16)], 1e-2)
    assert not result.is_finite
    assert all(torch.equal(before, after) for before, after in zip(weights, optimization.model.parameters(), strict=True))
