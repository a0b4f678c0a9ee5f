"""The summed NLL that training differentiates, against torch's cross entropy in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes import post_grad
from torch.fx.experimental.proxy_tensor import make_fx

from miniplm.models import nll
from miniplm.models.nll import Head, add_product, differentiate_nll_at_once, nll_of_hidden, sum_nll_of_hidden, sums_in_product
from miniplm.training.distillation_loss import differentiate_distillation_at_once


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


@pytest.mark.parametrize(("product_bytes", "num_products"), [(1 << 28, 1), (10 * 50 * 2, 3)])
def test_in_bfloat16_a_cpu_adds_to_the_gradient_of_the_head_once_a_large_product_and_losses_see_small_blocks(
    monkeypatch: pytest.MonkeyPatch, product_bytes: int, num_products: int
) -> None:
    hidden_NH, weight_VH, targets_N = made_inputs()
    seen, num_added, add = [], [], nll.add_product

    def loss(logits_KV: torch.Tensor, tokens: slice) -> torch.Tensor:
        seen.append((logits_KV.dtype, tokens))
        nll_K = differentiate_nll_at_once(logits_KV, targets_N[tokens])
        return nll_K

    monkeypatch.setattr(nll, "_CPU_PRODUCT_BYTES", product_bytes)
    monkeypatch.setattr(nll, "_CPU_SUM_ELEMENTS", 16 * 8)  # the head's gradient in four parts
    monkeypatch.setattr(nll, "add_product", lambda *arguments: num_added.append(add(*arguments)))
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        hidden, weight = hidden_NH.clone().requires_grad_(), weight_VH.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            nll.sum_in_blocks(Head(weight), hidden, loss, 5).backward()
        gradients.append((hidden.grad, weight.grad))
    assert len(num_added) == num_products + 5  # in float32 one a block, to the last bit as ever
    assert {dtype for dtype, _ in seen} == {torch.float32}
    assert [(tokens.start, tokens.stop) for _, tokens in seen[:5]] == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]
    for own, other in zip(*gradients, strict=True):
        assert (own - other).norm() / other.norm() < 2e-2


@pytest.mark.parametrize("head_options", [{}, {"softcap": 5.0}])
def test_a_folded_scale_gives_the_gradient_of_the_scaled_sum_and_the_sum_itself(head_options: dict) -> None:
    hidden_NH, weight_VH, targets_N = made_inputs()
    folded, plain = ([hidden_NH.clone().requires_grad_(), weight_VH.clone().requires_grad_()] for _ in range(2))
    total = sum_nll_of_hidden(Head(folded[1], **head_options), folded[0], targets_N, 7, gradient_scale=3 / 17)
    total.backward()
    unscaled = sum_nll_of_hidden(Head(plain[1], **head_options), plain[0], targets_N, 7)
    (unscaled / 17 * 3).backward()
    assert total.item() == unscaled.item()
    for own, other in zip(folded, plain, strict=True):
        assert torch.equal(own.grad, other.grad)  # on a CPU to the last bit: trainings have the same weights as before


def test_a_sum_with_a_folded_scale_is_refused_as_a_part_of_something_larger() -> None:
    hidden_NH, weight_VH, targets_N = made_inputs()
    total = sum_nll_of_hidden(Head(weight_VH.requires_grad_()), hidden_NH, targets_N, gradient_scale=0.5)
    with pytest.raises(RuntimeError, match="where the backward pass begins"):
        (2 * total).backward()


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_adding_a_product_of_bfloat16_to_float32_sums_is_one_call_that_pytorch_has(scale: float) -> None:
    total, left, right = torch.zeros(5, 4), torch.ones(5, 3).bfloat16(), torch.ones(3, 4).bfloat16()
    assert not sums_in_product(left, total)
    assert sums_in_product(left.float(), total)
    add_product(total, left, right, scale, in_product=False)
    assert total.tolist() == [[3 * scale] * 4] * 5
    # What a GPU calls, by PyTorch's own rules for shapes and dtypes; no CPU computes it.
    add_product(total.to("meta"), left.to("meta"), right.to("meta"), scale, in_product=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [differentiate_nll_at_once, partial(differentiate_distillation_at_once, kl_weight=0.5)])
def test_compiled_losses_take_maximum_and_sum_of_the_logits_in_one_pass(function: Any, dtype: torch.dtype) -> None:
    is_distillation = isinstance(function, partial)
    logits = torch.zeros(8, 64, dtype=dtype)
    arguments = (logits, torch.zeros(8, dtype=torch.long), *([torch.zeros(8, 60, dtype=dtype)] if is_distillation else []))
    graph = make_fx(function, decomposition_table=select_decomp_table(), tracing_mode="fake")(*arguments)
    for node in graph.graph.nodes:  # the pass is for GPUs only, and looks where the tensors lie
        if (value := node.meta.get("val")) is not None:
            value.fake_device = torch.device("cuda")
    post_grad.lazy_init()
    for patterns in post_grad.pass_patterns:
        patterns.apply(graph)
    names = [str(node.target) for node in graph.graph.nodes]
    assert names.count("prims.prepare_softmax_online.default") == (2 if is_distillation else 1)
    assert not [name for name in names if "amax" in name]
