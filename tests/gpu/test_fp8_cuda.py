"""The products of fp8 tensor cores are those that a CPU makes of the same rounded numbers."""

from __future__ import annotations

import pytest
import torch

from miniplm.models.fp8 import Fp8Linear, convert_to_fp8, multiply_quantized, quantize_rows, supports_fp8
from tests.miniplm.made_models import make_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not supports_fp8(torch.device("cuda")), reason="needs tensor cores with fp8"
    ),
]


def make_layer(num_inputs: int, num_outputs: int, with_bias: bool) -> tuple[Fp8Linear, Fp8Linear]:
    """The same layer on the CPU and on the GPU."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_outputs, num_inputs, generator=generator).bfloat16()
    weight = weight * torch.logspace(-2, 2, num_outputs)[:, None].bfloat16()
    bias = torch.randn(num_outputs, generator=generator).bfloat16() if with_bias else None
    return Fp8Linear(weight, bias), Fp8Linear(weight, bias).cuda()


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, 5, 257])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(16, 16), (576, 192), (4096, 1536)])
def test_tensor_cores_agree_with_the_emulation(num_tokens, num_inputs, num_outputs, with_bias):
    on_cpu, on_gpu = make_layer(num_inputs, num_outputs, with_bias)
    x = torch.randn(num_tokens, num_inputs, generator=torch.Generator().manual_seed(1)).bfloat16()
    x = x * torch.logspace(-3, 3, num_tokens)[:, None].bfloat16()
    expected, ours = on_cpu(x).float(), on_gpu(x.cuda()).float().cpu()
    # Half a unit of bfloat16 on each side, and partial sums of 13 bits: one truncation for each 32 products.
    sizes = x.float().norm(dim=1, keepdim=True) * on_cpu.weight_scale * 448
    assert ((ours - expected).abs() <= 2**-7 * expected.abs() + 2**-13 * sizes * max(1, num_inputs / 32)).all()


def test_rounded_numbers_are_the_same_on_both_devices():
    x = torch.randn(300, 576, generator=torch.Generator().manual_seed(0)).bfloat16()
    (cpu, cpu_scale), (gpu, gpu_scale) = quantize_rows(x), quantize_rows(x.cuda())
    assert cpu_scale.equal(gpu_scale.cpu())
    assert cpu.float().equal(gpu.float().cpu())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(bad):
    _, layer = make_layer(64, 48, with_bias=True)
    x = torch.ones(40, 64, dtype=torch.bfloat16, device="cuda")
    x[3, 5] = bad
    x[4] = 0
    for forward in (layer, torch.compile(layer)):
        finite = forward(x).isfinite()
        assert not finite[3].any()
        assert finite[torch.arange(40) != 3].all()
        assert forward(x)[4].equal(layer.bias)


def test_any_stride_of_the_input_will_do():
    _, layer = make_layer(64, 48, with_bias=False)
    x = torch.randn(64, 32, device="cuda").bfloat16()
    assert layer(x.t()).equal(layer(x.t().contiguous()))


def test_exact_sums_are_exact():
    ones, scale = quantize_rows(torch.ones(32, 8192, device="cuda"))
    # After 32 j products the sum is 49 j * 2**17, with j up to 256: 14 bits hold it, which an accumulator with 13 after the leading one keeps.
    product = multiply_quantized(ones, scale, ones, scale, None, on_tensor_cores=True)
    assert (product == 8192).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_converted_model_on_cuda_is_close_to_the_unconverted_one(compiled):
    body = make_llama().model.bfloat16().cuda()
    token_ids = torch.randint(0, 100, (4, 64), generator=torch.Generator().manual_seed(0)).cuda()
    with torch.inference_mode():
        before = body(input_ids=token_ids, use_cache=False).last_hidden_state.float()
        assert convert_to_fp8(body) == 14
        forward = torch.compile(body, fullgraph=True) if compiled else body
        after = forward(input_ids=token_ids, use_cache=False).last_hidden_state.float()
    assert (after - before).norm() < 0.4 * before.norm()
