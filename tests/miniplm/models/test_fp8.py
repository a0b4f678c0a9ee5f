"""Fp8 layers compute what they say: rounding, scales, sums and which layers are converted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from miniplm.models.fp8 import Fp8Linear, convert_to_fp8, multiply_quantized, quantize_rows, supports_fp8
from miniplm.models.nll import nll_of_logits
from tests.miniplm.made_models import make_gpt2, make_llama


def make_layer(num_inputs: int, num_outputs: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(num_inputs, num_outputs).bfloat16()


def make_input(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_a_worked_case():
    # scale of x: 896 / 448 = 2; -3.3 / 2 = -1.65, between the e4m3 values -1.625 and -1.75; scales of w: 1 and 0.5
    x = torch.tensor([[896.0, 2.0, -3.3, 0.0]])
    weight = torch.tensor([[1.0, -448.0, 4.0, 0.0], [0.0, 0.25, -1.0, 224.0]])
    quantized, scale = quantize_rows(x)
    assert (quantized.float().tolist(), scale.tolist()) == ([[448.0, 1.0, -1.625, 0.0]], [2.0])
    layer = Fp8Linear(weight, torch.tensor([0.5, 0.0]))
    assert layer.weight_scale.tolist() == [1.0, 0.5]
    # 896 - 2 * 448 - 3.25 * 4 + 0.5 and 2 * 0.25 + 3.25
    assert layer(x).tolist() == [[-12.5, 3.75]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 70), st.floats(-30, 30), st.integers(0, 2**31))
def test_rounding_is_within_half_a_unit_of_the_last_bit(num_rows, width, exponent, seed):
    values = make_input(num_rows, width, seed=seed) * 10**exponent
    quantized, scale = quantize_rows(values)
    rounded = quantized.double() * scale.double()[:, None]
    # 3 bits after the leading one down to 2**-6 of e4m3, even steps of 2**-9 below it; the rest is float32 rounding.
    bound = torch.maximum(values.double().abs() * 2**-4, scale.double()[:, None] * 2**-10) * (1 + 1e-5)
    assert quantized.dtype == torch.float8_e4m3fn
    assert scale.dtype == torch.float32
    assert ((rounded - values.double()).abs() <= bound).all()
    assert (quantized.float().abs().amax(dim=1) == 448).all()


@pytest.mark.parametrize("on_tensor_cores", [False, True])  # a CPU has the operation of tensor cores too
def test_the_sum_is_that_of_the_rounded_numbers_in_float64(on_tensor_cores):
    x, x_scale = quantize_rows(make_input(37, 512))
    weight, weight_scale = quantize_rows(make_input(48, 512, seed=2))
    bias = make_input(48, seed=3)
    ours = multiply_quantized(x, x_scale, weight, weight_scale, bias, on_tensor_cores)
    x64, weight64 = x.double() * x_scale.double()[:, None], weight.double() * weight_scale.double()[:, None]
    oracle = x64 @ weight64.T + bias.double()
    sizes = x64.abs() @ weight64.abs().T + bias.double().abs()
    bound = 1e-6 * sizes + (2**-8 * oracle.abs() if on_tensor_cores else 0)
    assert ours.dtype == (torch.bfloat16 if on_tensor_cores else torch.float32)
    assert ((ours.double() - oracle).abs() <= bound).all()


def test_a_layer_is_within_the_bound_of_fp8_of_the_true_product():
    linear, x = make_layer(256, 32), make_input(64, 256)
    with torch.no_grad():
        x64, weight64 = x.double(), linear.weight.double()
        true = x64 @ weight64.T + linear.bias.double()
        x_error, weight_error = (
            torch.maximum(rows.abs() * 2**-4, rows.abs().amax(dim=1, keepdim=True) / 448 * 2**-10) for rows in (x64, weight64)
        )
        bound = x_error @ weight64.abs().T + x64.abs() @ weight_error.T + x_error @ weight_error.T
        ours = Fp8Linear(linear.weight, linear.bias)(x).double()
        assert ((ours - true).abs() <= bound * (1 + 1e-5) + 2**-8 * true.abs()).all()
        # Errors have both signs: the typical one is far below the bound.
        assert (ours - true).norm() < 0.05 * true.norm()


def test_leading_shapes_strides_and_dtypes_of_the_input_are_kept():
    layer = Fp8Linear(make_layer(32, 48).weight, None)
    x = make_input(2, 3, 32)
    y = layer(x)
    assert y.shape == (2, 3, 48)
    assert y.dtype == torch.bfloat16
    assert layer(x.float()).dtype == torch.float32
    assert layer(x.transpose(0, 1)).equal(y.transpose(0, 1))
    assert layer(x[0, 0]).equal(y[0, 0])
    assert layer(x[:0]).shape == (0, 3, 48)
    layer._on_tensor_cores = True
    assert layer(x.transpose(0, 1)).equal(y.transpose(0, 1))


@pytest.mark.parametrize("on_tensor_cores", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible_in_its_row_only(bad, on_tensor_cores):
    layer = Fp8Linear(make_layer(32, 48).weight, None)
    layer._on_tensor_cores = on_tensor_cores
    x = make_input(3, 32)
    expected = layer(x)
    x[1, 7] = bad
    assert layer(x).isfinite().any(dim=1).tolist() == [True, False, True]
    assert layer(x)[[0, 2]].equal(expected[[0, 2]])
    weight = make_layer(32, 48).weight.detach()
    weight[5, 0] = bad
    assert Fp8Linear(weight, None)(expected.new_ones(3, 32)).isfinite().any(dim=0).logical_not().nonzero().tolist() == [[5]]


def test_rows_of_zeros_give_zeros():
    layer = Fp8Linear(torch.cat([torch.zeros(1, 16), torch.ones(1, 16)]), None)
    x = torch.tensor([[0.0] * 16, [2.0] * 16]).bfloat16()
    assert layer(x).tolist() == [[0.0, 0.0], [0.0, 32.0]]


class Odd(nn.Linear):
    """A subclass that computes something else."""


def test_only_plain_linear_layers_with_widths_of_16_are_converted():
    shared = nn.Linear(32, 16)
    module = nn.ModuleDict(
        {
            "embedding": nn.Embedding(32, 32),
            "norm": nn.LayerNorm(32),
            "narrow_input": nn.Linear(24, 32),
            "narrow_output": nn.Linear(32, 8),
            "subclass": Odd(32, 32),
            "first": nn.Sequential(shared, nn.ReLU()),
            "second": nn.Sequential(shared),
        }
    ).eval()
    assert convert_to_fp8(module) == 1
    assert [name for name, child in module.named_modules() if isinstance(child, Fp8Linear)] == ["first.0"]
    assert module["first"][0] is module["second"][0]
    assert not module["first"][0].training
    assert isinstance(module["subclass"], Odd)
    assert convert_to_fp8(module) == 0


def test_conv1d_of_gpt2_is_its_linear_layer():
    conv = make_gpt2().transformer.h[0].mlp.c_fc
    linear = nn.Linear(*conv.weight.shape)
    linear.load_state_dict({"weight": conv.weight.T, "bias": conv.bias})
    module = nn.ModuleList([conv, linear])
    assert convert_to_fp8(module) == 2
    x = make_input(5, 32)
    assert module[0](x).equal(module[1](x))
    assert module[0].weight_q.is_contiguous()


@pytest.mark.parametrize(("make_model", "num_linears"), [(make_llama, 14), (make_gpt2, 8)])
def test_a_converted_model_scores_alike_and_keeps_its_head(make_model, num_linears):
    model = make_model()
    token_ids = torch.randint(0, 100, (8, 64), generator=torch.Generator().manual_seed(0))

    def mean_nll() -> float:
        logits = model(input_ids=token_ids[:, :-1], use_cache=False).logits
        return nll_of_logits(logits.flatten(0, 1), token_ids[:, 1:].flatten()).mean().item()

    with torch.inference_mode():
        before = mean_nll()
        assert convert_to_fp8(model) == num_linears
        assert type(model.get_output_embeddings()) is nn.Linear
        assert mean_nll() == pytest.approx(before, rel=0.02)
        assert mean_nll() != before


def test_experts_in_one_parameter_are_left_alone():
    config = MixtralConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    body = MixtralForCausalLM(config).eval().model
    experts = {name for name, parameter in body.named_parameters() if parameter.dim() == 3}
    assert convert_to_fp8(body) == 4
    assert experts
    assert experts <= {name for name, _ in body.named_parameters()}


def test_a_cpu_has_no_fp8():
    assert not supports_fp8(torch.device("cpu"))


def test_a_layer_can_be_compiled_whole():
    layer, x = Fp8Linear(make_layer(32, 48).weight, make_input(48)), make_input(4, 32)
    with torch.inference_mode():
        assert torch.compile(layer, fullgraph=True, backend="aot_eager")(x).equal(layer(x))
