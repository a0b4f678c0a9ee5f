"""The Triton kernel's arithmetic, run by Triton's interpreter on the CPU, against float64; its refusals without any device.

The interpreter multiplies bfloat16 as integers, so bfloat16 is left to tests/gpu.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

from miniplm.scoring import triton_nll
from miniplm.scoring.triton_nll import is_available, nll_by_triton
from tests.command_line import environment

ROOT = Path(__file__).resolve().parents[3]

# The largest difference from float64 in nats, and what else a name says. Logits are about 4 in size.
PROGRAM = """
import json
import torch
from miniplm.scoring import triton_nll
from miniplm.scoring.triton_nll import KernelConfig, nll_by_triton

SMALL = KernelConfig(16, 16, 32, num_warps=4, num_stages=2)


def make(N, V, H, dtype):
    generator = torch.Generator().manual_seed(N + V + H)
    hidden = torch.randn((N, H), generator=generator).to(dtype)
    weight = (torch.randn((V, H), generator=generator) * 4 / H**0.5).to(dtype)
    targets = torch.randint(0, V, (N,), generator=generator)
    targets[0], targets[-1] = V - 1, 0
    return hidden, weight, targets


def expect(hidden, weight, targets, scale_N=None, scale_V=None):
    logits = hidden.double() @ weight.double().T
    if scale_N is not None:
        logits = logits * scale_N.double()[:, None] * scale_V.double()
    return torch.logsumexp(logits, 1) - logits.gather(1, targets[:, None])[:, 0]


def differ(N, V, H, dtype, scaled=False, config=None):
    hidden, weight, targets = make(N, V, H, dtype)
    scales = (torch.linspace(0.3, 0.7, N), torch.linspace(0.4, 0.8, V)) if scaled else (None, None)
    nll = nll_by_triton(hidden, weight, targets, *scales, config=config)
    assert nll.dtype == torch.float32 and nll.shape == (N,)
    return (nll.double() - expect(hidden, weight, targets, *scales)).abs().max().item()


float8 = torch.float8_e4m3fn
found = {
    "float32": differ(70, 333, 64, torch.float32),
    "one of everything": differ(1, 1, 8, torch.float32),
    "H of 100, rows at multiples of 16 bytes": differ(130, 261, 100, torch.float32),
    "H of 576": differ(33, 259, 576, torch.float32),
    "float16, columns left over": differ(130, 513, 64, torch.float16),
    "float16, whole tiles only": differ(130, 512, 64, torch.float16),
    "float16, H of 100, rows without alignment": differ(130, 300, 100, torch.float16),
    "float8 with scales": differ(130, 513, 256, float8, scaled=True),
    "float8, H of 100, without scales": differ(70, 333, 100, float8),
    "float8 in small steps": differ(20, 70, 100, float8, scaled=True, config=SMALL),
    "float32 with scales": differ(70, 333, 64, torch.float32, scaled=True),
}
triton_nll._GROUP_BYTES = 2 * 16 * 64 * 4  # two blocks of tokens a group, and a last group of one
found["three chunks, three groups"] = differ(70, 16 * 37 + 5, 64, torch.float32, config=SMALL)

hidden, weight, targets = make(70, 16 * 37 + 5, 64, torch.float32)
whole = nll_by_triton(hidden, weight, targets, config=SMALL)
found["bits with fewer tokens"] = torch.equal(nll_by_triton(hidden[:37], weight, targets[:37], config=SMALL), whole[:37])
broken = hidden.clone()
broken[5, 3], broken[40, 0], broken[41, 0] = float("nan"), float("inf"), float("-inf")
nll = nll_by_triton(broken, weight, targets, config=SMALL)
found["tokens that are not finite"] = (~nll.isfinite()).nonzero()[:, 0].tolist()
found["bits of the others"] = torch.equal(nll[nll.isfinite()], whole[nll.isfinite()])
targets[7], targets[9] = -1, len(weight)
nll = nll_by_triton(hidden, weight, targets, config=SMALL)
found["targets outside"] = nll.isnan().nonzero()[:, 0].tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    """What the interpreter computes: it must be chosen before Triton is imported, hence a process of its own."""
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of Triton before 3.7 does not run with NumPy 2.4 or newer")
    command = [sys.executable, "-c", PROGRAM]
    variables = environment({"TRITON_INTERPRET": "1"})
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_every_shape_and_dtype_agrees_with_float64(found):
    differences = {name: value for name, value in found.items() if isinstance(value, float)}
    assert len(differences) == 12
    assert {name: value for name, value in differences.items() if not value < 1e-5} == {}


def test_an_nll_does_not_depend_on_the_other_tokens(found):
    assert found["bits with fewer tokens"] is True
    assert found["bits of the others"] is True


def test_only_broken_tokens_are_not_finite(found):
    assert found["tokens that are not finite"] == [5, 40, 41]


def test_a_target_outside_the_vocabulary_gives_nan(found):
    assert found["targets outside"] == [7, 9]


def test_no_cpu_is_a_device_for_it():
    assert not is_available(torch.device("cpu"))


def test_without_triton_it_says_so_when_used(monkeypatch):
    monkeypatch.setattr(triton_nll, "triton", None)
    assert not is_available(torch.device("cuda"))
    with pytest.raises(ImportError, match="needs the package triton"):
        nll_by_triton(torch.zeros(2, 8), torch.zeros(5, 8), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_VH": torch.zeros(5, 16)}, r"head are \(5, 16\)"),
        ({"weight_VH": torch.zeros(5, 8, dtype=torch.float16)}, "head are .* torch.float16 .* expected .* torch.float32"),
        ({"weight_VH": torch.zeros(8, 5).T}, r"strides \(1, 5\)"),
        ({"targets_N": torch.zeros(2, dtype=torch.int32)}, "targets are .* torch.int32"),
        ({"targets_N": torch.zeros(3, dtype=torch.int64)}, r"targets are \(3,\)"),
        ({"hidden_scale_N": torch.ones(2)}, "scales come in pairs"),
        ({"hidden_scale_N": torch.ones(2), "weight_scale_V": torch.ones(4)}, r"scales of the head are \(4,\)"),
        ({"hidden_NH": torch.zeros(2, 8).double(), "weight_VH": torch.zeros(5, 8).double()}, "torch.float64, which is none of"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(monkeypatch, changes, message):
    monkeypatch.setattr(triton_nll, "triton", object())
    inputs = {"hidden_NH": torch.zeros(2, 8), "weight_VH": torch.zeros(5, 8), "targets_N": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        nll_by_triton(**{**inputs, **changes})
