"""The Triton kernel on a CUDA device, every configuration of it, against float64."""

from __future__ import annotations

import pytest
import torch

from miniplm.scoring.triton_nll import HOPPER_CONFIGS, PLAIN_CONFIGS, is_available, nll_by_triton

pytestmark = pytest.mark.gpu

FLOAT8 = torch.float8_e4m3fn
# In nats: float32 sums leave 1e-3, and sums of float8 products more.
CASES = [
    (dtype, config, 1e-2 if dtype == FLOAT8 else 1e-3)
    for dtype in PLAIN_CONFIGS
    for config in dict.fromkeys((None, PLAIN_CONFIGS[dtype], HOPPER_CONFIGS[dtype]))
]


@pytest.fixture(autouse=True)
def device() -> torch.device:
    device = torch.device("cuda")
    if not is_available(device):
        pytest.skip("no Triton, or a device older than it needs")
    return device


def make(N: int, V: int, H: int, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Hidden states, head and targets that give logits about 4 in size, with scales for float8."""
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn((N, H), generator=generator).to(dtype)
    weight_VH = (torch.randn((V, H), generator=generator) * 4 / H**0.5).to(dtype)
    targets_N = torch.randint(0, V, (N,), generator=generator)
    scales = [torch.linspace(0.8, 1.2, N), torch.linspace(0.8, 1.2, V)] if dtype == FLOAT8 else []
    return [tensor.to(device) for tensor in (hidden_NH, weight_VH, targets_N, *scales)]


def expect(hidden_NH, weight_VH, targets_N, scale_N=None, scale_V=None) -> torch.Tensor:
    logits_NV = hidden_NH.double() @ weight_VH.double().T
    if scale_N is not None:
        logits_NV = logits_NV * scale_N.double()[:, None] * scale_V.double()
    return torch.logsumexp(logits_NV, 1) - logits_NV.gather(1, targets_N[:, None])[:, 0]


def skip_unfit(device, dtype, config) -> None:
    capability = torch.cuda.get_device_capability(device)
    if dtype == FLOAT8 and capability < (8, 9):
        pytest.skip("no float8 on this device")
    if config is not None and config not in PLAIN_CONFIGS.values() and capability[0] != 9:
        pytest.skip("this configuration is for Hopper")


@pytest.mark.parametrize(("dtype", "config", "tolerance"), CASES)
@pytest.mark.parametrize(("N", "V", "H"), [(300, 5003, 576), (1025, 49152, 512)])
def test_every_configuration_agrees_with_float64(device, dtype, config, tolerance, N, V, H):
    skip_unfit(device, dtype, config)
    inputs = make(N, V, H, dtype, device)
    nll_N = nll_by_triton(*inputs, config=config)
    assert (nll_N.double() - expect(*inputs)).abs().max().item() < tolerance
    assert torch.equal(nll_N, nll_by_triton(*inputs, config=config)), "two runs differ"


@pytest.mark.parametrize("dtype", list(PLAIN_CONFIGS))
def test_rows_without_alignment_agree_with_float64(device, dtype):
    skip_unfit(device, dtype, None)
    inputs = make(130, 777, 99, dtype, device)
    assert (nll_by_triton(*inputs).double() - expect(*inputs)).abs().max().item() < 1e-2


def test_an_nll_does_not_depend_on_the_other_tokens(device):
    hidden_NH, weight_VH, targets_N = make(1000, 20000, 512, torch.bfloat16, device)
    whole_N = nll_by_triton(hidden_NH, weight_VH, targets_N)
    assert torch.equal(nll_by_triton(hidden_NH[:333], weight_VH, targets_N[:333]), whole_N[:333])
    broken_NH = hidden_NH.clone()
    broken_NH[5, 3], broken_NH[700, 0] = float("nan"), float("inf")
    nll_N = nll_by_triton(broken_NH, weight_VH, targets_N)
    assert (~nll_N.isfinite()).nonzero()[:, 0].tolist() == [5, 700]
    assert torch.equal(nll_N[nll_N.isfinite()], whole_N[nll_N.isfinite()])


def test_no_logits_are_stored(device):
    """65,536 tokens x 151,936 logits would be 40 GB in float32; the kernel takes less than 64 MiB."""
    hidden_NH = torch.randn((65536, 64), device=device).to(torch.bfloat16)
    weight_VH = torch.randn((151936, 64), device=device).to(torch.bfloat16)
    targets_N = torch.randint(0, 151936, (65536,), device=device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    nll_by_triton(hidden_NH, weight_VH, targets_N)
    torch.cuda.synchronize(device)
    assert torch.cuda.max_memory_allocated(device) - before < 64 << 20


def test_offsets_beyond_32_bits_are_read_right(device):
    """A head of 2**31 elements and more, at an H whose rows descriptors do not take."""
    V, H = 140_000, 16_001
    if torch.cuda.get_device_properties(device).total_memory < 24 << 30:
        pytest.skip("needs 24 GiB")
    weight_VH = torch.zeros((V, H), dtype=torch.bfloat16, device=device)
    hidden_NH = torch.ones((3, H), dtype=torch.bfloat16, device=device)
    weight_VH[V - 1, H - 1] = 8.0
    targets_N = torch.tensor([V - 1, 0, V - 2], device=device)
    logsumexp = torch.tensor(V - 1 + torch.e**8, dtype=torch.float64).log()
    expected_N = torch.stack([logsumexp - 8.0, logsumexp, logsumexp]).float().to(device)
    torch.testing.assert_close(nll_by_triton(hidden_NH, weight_VH, targets_N), expected_N, atol=1e-3, rtol=0)
