"""The head in fp8: NLLs of the rounded numbers, in tiles, and a dtype that scores only behind the fidelity gate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from miniplm.errors import ConfigError, ModelError
from miniplm.models.devices import resolve_dtype, torch_dtype
from miniplm.models.fp8 import quantize_rows
from miniplm.models.identity import identify_model
from miniplm.models.loading import load_model
from miniplm.models.nll import Head
from miniplm.scoring.engine import Scorer
from miniplm.scoring.fp8_head import RoundedHead
from miniplm.scoring.heads import choose_head_kernel
from miniplm.selection.fidelity import needs_calibration
from tests.miniplm.made_models import make_llama, save_model
from tests.miniplm.made_zoo import make_family

CPU = torch.device("cpu")


def make_inputs(num_tokens: int = 37, vocab_size: int = 90, width: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn((num_tokens, width), generator=generator).bfloat16()
    weight_VH = (torch.randn((vocab_size, width), generator=generator) / 2).bfloat16()
    return hidden_NH, weight_VH, torch.randint(0, vocab_size, (num_tokens,), generator=generator)


def expect(head: Head, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    """In float64, of the numbers that both are rounded to."""
    hidden, weight = ((q.double() * scale.double()[:, None]) for q, scale in map(quantize_rows, (hidden_NH, head.weight_VH)))
    logits_NV = head.adjust(hidden @ weight.T, head.bias_V)
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")


@pytest.mark.parametrize("tile", [(8, 32), (100, 17), (1, 1000)])
@pytest.mark.parametrize(
    "more", [{}, {"bias_V": torch.linspace(-1, 1, 90).bfloat16()}, {"scale": 0.25, "softcap": 3.0}], ids=["plain", "bias", "capped"]
)
@pytest.mark.parametrize("on_tensor_cores", [False, True])  # a CPU has the operation of tensor cores too
def test_nlls_are_those_of_the_rounded_numbers(monkeypatch, tile, more, on_tensor_cores):
    hidden_NH, weight_VH, targets_N = make_inputs()
    head = Head(weight_VH, **more)
    monkeypatch.setattr("miniplm.scoring.fp8_head.supports_fp8", lambda _: on_tensor_cores)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    rounded, expected_N = RoundedHead(head), expect(head, hidden_NH, targets_N)
    for compiled in (False, True):  # which fills up a tile
        found_N = rounded.nll_by_tiles(tile, compiled)(hidden_NH, targets_N)
        assert found_N.dtype == torch.float32
        torch.testing.assert_close(found_N.double(), expected_N, atol=0.03 if on_tensor_cores else 1e-5, rtol=0)
    assert rounded.nll_by_tiles(tile)(hidden_NH[:0], targets_N[:0]).shape == (0,)


def test_what_is_not_finite_stays_in_its_token():
    hidden_NH, weight_VH, targets_N = make_inputs()
    nll = choose_head_kernel(Head(weight_VH), compile_allowed=True, in_fp8=True).nll
    expected_N = nll(hidden_NH, targets_N)
    hidden_NH[5, 3] = float("nan")
    assert nll(hidden_NH, targets_N).isfinite().logical_not().nonzero().tolist() == [[5]]
    assert torch.equal(nll(hidden_NH, targets_N)[6:], expected_N[6:])


def test_a_head_that_does_not_work_here_is_refused():
    head = Head(make_inputs()[1])
    assert choose_head_kernel(head, compile_allowed=True, in_fp8=True).name == "fp8-tiles"
    with pytest.raises(ValueError, match=r"head fp8-triton left out: it is not for this head or device \(on cpu\)"):
        choose_head_kernel(head, True, only="fp8-triton", in_fp8=True)
    with pytest.raises(ValueError, match=r"there is no head 'tiles' here; the heads are fp8-tiles, fp8-compiled, "):
        choose_head_kernel(head, True, only="tiles", in_fp8=True)


def test_a_model_scores_with_its_head_in_fp8_where_the_dtype_says_so(tmp_path):
    folder = save_model(make_llama(), tmp_path / "llama")
    sequences = list(np.random.default_rng(0).integers(1, 100, (8, 60)))
    heads, scores, ids = [], [], set()
    for dtype in ("bfloat16", "fp8", "fp8-head"):
        scorer = Scorer(load_model(folder, dtype, CPU), 256)
        heads.append(scorer.describe()["head"])
        scores.append(scorer.score(sequences, eos_token_id=0).nll_sum)
        ids.add(identify_model(folder, "llama", dtype).model_id)
    assert heads == ["tiles", "tiles", "fp8-tiles"]
    assert len(ids) == 3
    assert (scores[1] != scores[2]).all()
    np.testing.assert_allclose(scores[2], scores[0], rtol=0.05)


def test_a_head_of_a_width_that_fp8_does_not_multiply_is_refused(tmp_path):
    folder = save_model(make_family("gpt2", n_embd=24, hidden_size=24, n_inner=32), tmp_path / "gpt2")
    with pytest.raises(
        ModelError, match=r"has a head of width 24, and fp8 multiplies widths that are multiples of 16; use dtype fp8,"
    ):
        load_model(folder, "fp8-head", CPU)


def test_it_scores_only_behind_the_gate_and_where_a_device_has_fp8():
    assert needs_calibration("bfloat16", "fp8-head")
    assert torch_dtype("fp8-head") == torch.bfloat16
    assert resolve_dtype("fp8-head", CPU, emulated=True) == "fp8-head"
    with pytest.raises(ConfigError, match=r"dtype fp8-head needs a GPU of compute capability 8\.9"):
        resolve_dtype("fp8-head", CPU)
