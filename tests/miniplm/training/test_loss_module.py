"""Model and loss as one module: compiled or not the same loss and gradient; what does not compile runs as it is."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from miniplm.models import compilation
from miniplm.models.architectures import build_model
from miniplm.models.loading import split_head
from miniplm.models.nll import differentiate_nll_at_once
from miniplm.training.data import collate
from miniplm.training.loss_module import LossModule, find_layers
from miniplm.training.losses import sum_language_model_loss
from tests.miniplm.made_trainings import EOS, VOCAB_SIZE, make_sequences


def make_module() -> LossModule:
    return LossModule(build_model("qwen-tiny", VOCAB_SIZE, 16, seed=1), sum_language_model_loss, "float32")


def make_batch() -> Any:
    return collate([np.array(sequence, np.uint16) for sequence in make_sequences(4)], EOS, (4, 17))


def gradients(module: LossModule) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in module.model.named_parameters()}


@pytest.mark.parametrize("compile_module", [LossModule.compile_body, LossModule.compile_layers])
def test_compiled_model_gives_the_same_loss_and_gradient(compile_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # What torch.compile makes of the code, without its code generator, which takes long.
    compile_, calls = torch.compile, []
    monkeypatch.setattr(compilation.torch, "compile", lambda function: compile_(function, backend="eager"))
    monkeypatch.setattr(compilation._log, "warning", calls.append)
    plain, compiled = make_module(), make_module()
    for module in (plain, compiled):  # one layer is as good as four, and sooner compiled
        module.model.model.layers = module.model.model.layers[:1]
        module.model.config.num_hidden_layers = 1
    compile_module(compiled)
    losses = [module(make_batch()) for module in (plain, compiled)]
    assert calls == [], "it did not compile"
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for loss in losses:
        loss.backward()
    compared = gradients(compiled)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradient, compared[name], rtol=1e-3, atol=1e-4, msg=name)


def test_model_that_does_not_compile_runs_as_it_is_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise NotImplementedError("an odd model")

    monkeypatch.setattr(compilation.torch, "compile", lambda function: broken)
    module = make_module()
    module.compile_body()
    with caplog.at_level(logging.WARNING, "miniplm"):
        losses = [module(make_batch()).item() for _ in range(2)]
    assert losses == [make_module()(make_batch()).item()] * 2
    assert [record.message for record in caplog.records if record.name == "miniplm"] == [
        "torch.compile failed on Qwen2ForCausalLM (an odd model); it runs uncompiled, more slowly"
    ]


def test_memory_that_runs_out_is_no_reason_to_compile_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*arguments: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compilation.torch, "compile", lambda function: hungry)
    call = compilation.CompiledCall(lambda: None, "it")
    with pytest.raises(torch.OutOfMemoryError):
        call()
    assert call.is_compiled


def test_batch_without_a_scored_target_has_a_loss_and_gradient_of_zero() -> None:
    module = make_module()
    loss = module(collate([np.array([EOS], np.uint16)], EOS, (2, 5)))
    loss.backward()
    assert loss.item() == 0.0
    assert all(gradient is not None and not gradient.any() for gradient in gradients(module).values())


def test_layers_are_the_longest_part_of_the_body() -> None:
    body, _ = split_head(make_module().model)
    assert [type(layer).__name__ for layer in find_layers(body)] == ["Qwen2DecoderLayer"] * 4
    assert find_layers(torch.nn.Linear(2, 2)) == []


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_fused_loss_leaves_the_gradient_where_the_logits_were(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    logits_KV, targets_K = (3 * torch.randn(11, 50)).to(dtype), torch.randint(0, 50, (11,))
    exact_KV = logits_KV.double().requires_grad_()
    exact_K = torch.nn.functional.cross_entropy(exact_KV, targets_K, reduction="none")
    exact_K.sum().backward()
    nll_K = differentiate_nll_at_once(logits_KV, targets_K)
    assert nll_K.dtype == torch.float32
    torch.testing.assert_close(nll_K.double(), exact_K, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_KV.double(), exact_KV.grad, rtol=0, atol=tolerance)
