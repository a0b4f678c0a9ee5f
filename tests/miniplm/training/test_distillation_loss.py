"""The distillation loss against numbers worked out by hand and a plain float64 computation over whole logits."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from miniplm.models.nll import Head, sum_nll_of_hidden
from miniplm.training.distillation_loss import count_block_tokens, differentiate_distillation_at_once, sum_distillation_loss

ONE = torch.ones(1, 1)


def head_of(*probabilities: float) -> Head:
    """Gives these probabilities to the hidden state 1."""
    return Head(torch.tensor(probabilities).log()[:, None].requires_grad_())


def test_loss_and_gradient_of_known_distributions() -> None:
    student, teacher = head_of(1 / 2, 1 / 4, 1 / 4), head_of(1 / 4, 1 / 4, 1 / 2)
    loss = sum_distillation_loss(student, ONE, torch.tensor([0]), teacher, ONE, kl_weight=0.75)
    loss.backward()
    # nll = ln 2; KL = 1/4 ln(1/2) + 1/4 ln 1 + 1/2 ln 2
    assert loss.item() == pytest.approx(0.25 * log(2) + 0.75 * 0.25 * log(2), abs=1e-6)
    # p_student - 1/4 [target] - 3/4 p_teacher
    expected = [1 / 2 - 1 / 4 - 3 / 16, 1 / 4 - 3 / 16, 1 / 4 - 3 / 8]
    assert student.weight_VH.grad is not None
    assert student.weight_VH.grad[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert teacher.weight_VH.grad is None


def test_a_student_that_is_its_teacher_has_no_divergence_whatever_the_entropy() -> None:
    loss = sum_distillation_loss(head_of(0.2, 0.7, 0.1), ONE, torch.tensor([2]), head_of(0.2, 0.7, 0.1), ONE, kl_weight=1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_teacher_probability_on_ids_that_the_student_lacks_is_dropped_and_the_rest_renormalised() -> None:
    loss = sum_distillation_loss(head_of(1 / 2, 1 / 4, 1 / 4), ONE, torch.tensor([0]), head_of(0.1, 0.1, 0.1, 0.7), ONE, 1.0)
    assert loss.item() == pytest.approx((log(2 / 3) + 2 * log(4 / 3)) / 3, abs=1e-6)


def test_student_probability_on_ids_that_the_teacher_lacks_costs_in_both_terms() -> None:
    student = head_of(1 / 2, 1 / 4, 1 / 8, 1 / 8)
    loss = sum_distillation_loss(student, ONE, torch.tensor([1]), head_of(1 / 2, 1 / 2), ONE, kl_weight=0.5)
    loss.backward()
    # nll = ln 4; KL = 1/2 ln 1 + 1/2 ln 2
    assert loss.item() == pytest.approx(0.5 * log(4) + 0.5 * 0.5 * log(2), abs=1e-6)
    assert student.weight_VH.grad is not None
    assert student.weight_VH.grad[:, 0].tolist() == pytest.approx([1 / 4, 1 / 4 - 1 / 2 - 1 / 4, 1 / 8, 1 / 8], abs=1e-6)


def made_inputs(num_student_ids: int = 50, num_teacher_ids: int = 50, N: int = 23) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "hidden": torch.randn(N, 8, generator=generator),
        "weight": 3 * torch.randn(num_student_ids, 8, generator=generator),
        "teacher_hidden": torch.randn(N, 12, generator=generator),
        "teacher_weight": 3 * torch.randn(num_teacher_ids, 12, generator=generator),
        "targets": torch.randint(min(num_student_ids, num_teacher_ids), (N,), generator=generator),
    }


def oracle(inputs: dict[str, Tensor], kl_weight: float, **head_options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in float64, of whole logits, one term after the other as the formula is written."""
    hidden, weight = (inputs[name].double().requires_grad_() for name in ("hidden", "weight"))
    bias = head_options.get("bias_V")
    student = torch.log_softmax(Head(weight, **head_options).adjust(hidden @ weight.T, bias), dim=1)
    teacher = torch.softmax(inputs["teacher_hidden"].double() @ inputs["teacher_weight"].double().T, dim=1)
    shared = min(student.shape[1], teacher.shape[1])
    teacher = teacher[:, :shared] / teacher[:, :shared].sum(dim=1, keepdim=True)
    cross_entropy = torch.nn.functional.nll_loss(student, inputs["targets"], reduction="sum")
    divergence = torch.nn.functional.kl_div(student[:, :shared], teacher, reduction="sum")
    loss = (1 - kl_weight) * cross_entropy + kl_weight * divergence
    return loss, *torch.autograd.grad(loss, (hidden, weight))


def ours(
    inputs: dict[str, Tensor], kl_weight: float, block_tokens: int | None, **head_options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = (inputs[name].clone().requires_grad_() for name in ("hidden", "weight"))
    teacher_head = Head(inputs["teacher_weight"])
    loss = sum_distillation_loss(
        Head(weight, **head_options), hidden, inputs["targets"], teacher_head, inputs["teacher_hidden"], kl_weight, block_tokens
    )
    (loss / 17).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss, 17 * hidden.grad, 17 * weight.grad


@pytest.mark.parametrize("block_tokens", [1, 7, 23, 100, None])
@pytest.mark.parametrize(("num_student_ids", "num_teacher_ids"), [(50, 50), (64, 50), (50, 64)])
def test_loss_and_gradients_equal_float64_whatever_the_blocks_and_the_padding(
    num_student_ids: int, num_teacher_ids: int, block_tokens: int | None
) -> None:
    inputs = made_inputs(num_student_ids, num_teacher_ids)
    loss, *gradients = ours(inputs, 0.3, block_tokens)
    wanted, *wanted_gradients = oracle(inputs, 0.3)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    for own, other in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head_options", [{"bias_V": torch.linspace(-1, 1, 50)}, {"scale": 0.3}, {"softcap": 5.0}])
@pytest.mark.parametrize("block_tokens", [7, None])
def test_heads_that_are_not_plain_give_the_gradients_of_their_own_arithmetic(
    head_options: dict[str, Any], block_tokens: int | None
) -> None:
    inputs = made_inputs(num_teacher_ids=64)
    loss, *gradients = ours(inputs, 0.5, block_tokens, **head_options)
    wanted, *wanted_gradients = oracle(inputs, 0.5, **head_options)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for own, other in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=1e-4, atol=1e-4)


def test_teacher_head_with_scale_bias_and_softcap_gives_its_own_distribution() -> None:
    student, bias = head_of(1 / 2, 1 / 2), torch.tensor([0.5, 0.0])
    teacher = Head(torch.tensor([[1.0], [-1.0]]), bias, scale=2.0, softcap=3.0)
    probabilities = torch.softmax(3 * torch.tanh(torch.tensor([1.5, -1.0], dtype=torch.float64) * 2 / 3), dim=0)
    loss = sum_distillation_loss(student, ONE, torch.tensor([0]), teacher, ONE, kl_weight=1.0)
    assert loss.item() == pytest.approx((probabilities * (2 * probabilities).log()).sum().item(), abs=1e-6)


def test_without_divergence_it_is_the_summed_nll() -> None:
    inputs = made_inputs()
    loss, *gradients = ours(inputs, 0.0, 7)
    hidden, weight = (inputs[name].clone().requires_grad_() for name in ("hidden", "weight"))
    nll = sum_nll_of_hidden(Head(weight), hidden, inputs["targets"], 7)
    nll.backward()
    assert loss.item() == pytest.approx(nll.item(), rel=1e-6)
    torch.testing.assert_close(gradients, [hidden.grad, weight.grad], rtol=1e-5, atol=1e-6)


def test_no_token_gives_no_loss_and_no_gradient() -> None:
    inputs = made_inputs(N=0)
    for options in ({}, {"scale": 0.5}):
        loss, hidden_gradient, weight_gradient = ours(inputs, 0.5, None, **options)
        assert loss.item() == 0.0
        assert hidden_gradient.shape == (0, 8)
        assert not weight_gradient.any()


def test_without_gradients_the_loss_is_the_same() -> None:
    inputs = made_inputs()
    with torch.no_grad():
        loss = sum_distillation_loss(
            Head(inputs["weight"]),
            inputs["hidden"],
            inputs["targets"],
            Head(inputs["teacher_weight"]),
            inputs["teacher_hidden"],
            0.5,
            7,
        )
    assert loss.item() == pytest.approx(oracle(inputs, 0.5)[0].item(), rel=1e-6)


def test_under_autocast_only_the_student_is_rounded() -> None:
    inputs = made_inputs()
    hidden, weight = (inputs[name].bfloat16().float().requires_grad_() for name in ("hidden", "weight"))
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum_distillation_loss(
            Head(weight), hidden, inputs["targets"], Head(inputs["teacher_weight"]), inputs["teacher_hidden"], 1.0, 7
        )
    loss.backward()
    rounded = {**inputs, "hidden": hidden.detach(), "weight": weight.detach()}
    # Logits of the student are rounded to 8 bits, the softmax of both is float32, and the teacher is as exact as without autocast.
    assert loss.dtype == weight.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle(rounded, 1.0)[0].item(), rel=1e-3)
    teacher_rounded = {**rounded, **{name: inputs[name].bfloat16() for name in ("teacher_hidden", "teacher_weight")}}
    assert abs(oracle(teacher_rounded, 1.0)[0].item() - loss.item()) > 2 * abs(oracle(rounded, 1.0)[0].item() - loss.item())


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation gives."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


@pytest.mark.parametrize("head_options", [{}, {"scale": 1.0}])
def test_no_tensor_of_all_tokens_and_the_whole_vocabulary_is_made(head_options: dict[str, Any]) -> None:
    N, V = 1024, 20_000
    hidden, weight = torch.randn(N, 4, requires_grad=True), torch.randn(V, 4, requires_grad=True)
    teacher, targets = Head(torch.randn(V, 4)), torch.randint(V, (N,))
    with LargestTensor() as largest:
        sum_distillation_loss(Head(weight, **head_options), hidden, targets, teacher, torch.randn(N, 4), 0.5).backward()
    assert N * V / 20 <= largest.num_elements <= N * V / 8, "one block's logits are the largest"


@pytest.mark.parametrize(("num_student_ids", "num_teacher_ids"), [(50, 50), (64, 50)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_that_a_gpu_compiles_leaves_the_same_gradient(num_student_ids: int, num_teacher_ids: int, dtype: torch.dtype) -> None:
    inputs = made_inputs(num_student_ids, num_teacher_ids)
    logits_KV = (inputs["hidden"] @ inputs["weight"].T).to(dtype)
    teacher_KU = (inputs["teacher_hidden"] @ inputs["teacher_weight"].T).to(dtype)
    student, teacher = logits_KV.double().requires_grad_(), teacher_KU.double()
    log_student, probabilities = torch.log_softmax(student, 1), torch.softmax(teacher, 1)
    divergence_K = (probabilities * (torch.log_softmax(teacher, 1) - log_student[:, :num_teacher_ids])).sum(1)
    exact_K = 0.7 * torch.nn.functional.nll_loss(log_student, inputs["targets"], reduction="none") + 0.3 * divergence_K
    exact_K.sum().backward()
    loss_K = differentiate_distillation_at_once(logits_KV, inputs["targets"], teacher_KU, 0.3)
    assert loss_K.dtype == torch.float32
    torch.testing.assert_close(loss_K.double(), exact_K, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_KV.double(), student.grad, rtol=0, atol=1e-6 if dtype == torch.float32 else 4e-3)


def test_logits_of_a_block_stay_under_the_bound_whatever_the_vocabularies() -> None:
    def count(num_ids: int, num_teacher_ids: int, device: str, dtype: torch.dtype = torch.bfloat16) -> int:
        student, teacher = (torch.empty(1, device=device, dtype=dtype).expand(num, 8) for num in (num_ids, num_teacher_ids))
        return count_block_tokens(student, dtype, teacher)

    assert count(151936, 151936, "cpu") == 13
    assert count(10**9, 10**9, "cpu") == count(10**10, 10**10, "meta") == 1
    assert count(151936, 151936, "meta") == (2560 << 20) // (4 * 151936) == 4416
    assert count(151936, 151936, "meta", torch.float32) == 2208


def test_logits_of_ids_that_the_student_lacks_are_not_made() -> None:
    inputs = made_inputs(50, 5000)
    with LargestTensor() as largest:
        ours(inputs, 0.5, 7)
    assert largest.num_elements <= 50 * 12
