"""The summed NLL that training differentiates, against torch's cross entropy in float64."""

from __future__ import annotations

import pytest
import torch

from miniplm.nll import Head, nll_of_hidden, sum_nll_of_hidden


def made_inputs(N: int = 23, H: int = 8, V: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden_NH = torch.randn(N, H, generator=generator)
    weight_VH = 3 * torch.randn(V, H, generator=generator)
    return hidden_NH, weight_VH, torch.randint(V, (N,), generator=generator)


@pytest.mark.parametrize("block_tokens", [1, 7, 23, 100, None])
def test_sum_and_both_gradients_equal_float64_cross_entropy(block_tokens: int | None) -> None:
    hidden_NH, weight_VH, targets_N = made_inputs()
    ours = [hidden_NH.clone().requires_grad_(), weight_VH.clone().requires_grad_()]
    theirs = [hidden_NH.double().requires_grad_(), weight_VH.double().requires_grad_()]
    total = sum_nll_of_hidden(Head(ours[1]), ours[0], targets_N, block_tokens)
    (total / 17).backward()
    oracle = torch.nn.functional.cross_entropy(theirs[0] @ theirs[1].T, targets_N, reduction="sum")
    (oracle / 17).backward()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(oracle.item(), rel=1e-6)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head_options", [{"bias_V": torch.linspace(-1, 1, 50)}, {"scale": 0.3}, {"softcap": 5.0}])
def test_heads_that_are_not_plain_give_the_gradients_of_their_own_arithmetic(head_options: dict) -> None:
    hidden_NH, weight_VH, targets_N = made_inputs()
    ours, theirs = hidden_NH.clone().requires_grad_(), hidden_NH.clone().requires_grad_()
    sum_nll_of_hidden(Head(weight_VH, **head_options), ours, targets_N).backward()
    torch.nn.functional.cross_entropy(Head(weight_VH, **head_options).logits(theirs), targets_N, reduction="sum").backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_sum_without_gradients_is_the_sum_of_the_scoring_nll() -> None:
    hidden_NH, weight_VH, targets_N = made_inputs()
    with torch.no_grad():
        total = sum_nll_of_hidden(Head(weight_VH), hidden_NH, targets_N)
    assert total.item() == nll_of_hidden(Head(weight_VH), hidden_NH, targets_N).sum().item()


def test_under_autocast_sum_and_gradients_are_near_float32_and_keep_the_weights_dtype() -> None:
    hidden_NH, weight_VH, targets_N = made_inputs()
    ours = [hidden_NH.clone().requires_grad_(), weight_VH.clone().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        total = sum_nll_of_hidden(Head(ours[1]), ours[0], targets_N, 5)
    total.backward()
    theirs = [hidden_NH.clone().requires_grad_(), weight_VH.clone().requires_grad_()]
    exact = torch.nn.functional.cross_entropy(theirs[0] @ theirs[1].T, targets_N, reduction="sum")
    exact.backward()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=2e-2)
    for own, other in zip(ours, theirs, strict=True):
        assert own.grad.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(own.grad.flatten(), other.grad.flatten(), dim=0) > 0.999


def test_huge_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4]], requires_grad=True)
    total = sum_nll_of_hidden(Head(torch.tensor([[1.0], [-1.0]], requires_grad=True)), hidden, torch.tensor([1]))
    total.backward()
    assert total.item() == pytest.approx(2e4)
    assert torch.isfinite(hidden.grad).all()


def test_no_targets_sum_to_zero() -> None:
    hidden = torch.zeros(0, 8, requires_grad=True)
    total = sum_nll_of_hidden(Head(torch.ones(5, 8, requires_grad=True)), hidden, torch.zeros(0, dtype=torch.long))
    assert total.item() == 0.0
