"""The same scores on a CUDA device as in float64 on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miniplm.models.architectures import build_model
from miniplm.models.fp8 import quantize_rows, supports_fp8
from miniplm.models.fused_linear import count_products
from miniplm.models.loading import load_model
from miniplm.models.nll import Head
from miniplm.scoring.engine import Scorer
from miniplm.scoring.heads import choose_head_kernel
from tests.miniplm.made_models import make_llama, save_model

EOS = 0

pytestmark = pytest.mark.gpu


def make_sequences(num: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.choice(100, size=rng.integers(2, 100), p=[0.1] + [0.9 / 99] * 99).astype(np.uint16) for _ in range(num)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_scores_on_cuda_agree_with_float64(tmp_path, dtype, tolerance):
    model = make_llama()
    sequences = make_sequences(64)
    loaded = load_model(save_model(model, tmp_path / "m"), dtype, torch.device("cuda"))
    scores = Scorer(loaded, 4096).score(sequences, EOS)
    for row, sequence in enumerate(sequences):
        token_ids = torch.tensor(sequence.astype(np.int64))
        mask = token_ids[:-1] != EOS
        with torch.no_grad():
            log_probs = model.double()(input_ids=token_ids[None, :-1]).logits[0].log_softmax(-1)
        nll = -log_probs.gather(1, token_ids[1:, None])[:, 0][mask].sum().item()
        assert scores.num_scored_tokens[row] == mask.sum()
        assert scores.nll_sum[row] == pytest.approx(nll, abs=tolerance * max(1, mask.sum().item()))


@pytest.mark.parametrize("attention", ["sequence", "document"])
@pytest.mark.parametrize("compile", [True, False])
def test_segments_on_cuda_agree_with_padded_rows_in_float32(tmp_path, attention, compile):
    folder = save_model(make_llama(), tmp_path / "m")
    sequences = make_sequences(64)
    exact = Scorer(load_model(folder, "float32", torch.device("cuda")), 1024, attention, False).score(sequences, EOS)
    scorer = Scorer(load_model(folder, "bfloat16", torch.device("cuda")), 1024, attention, compile)
    scorer.warm_up(99)
    assert scorer.forward.layout == "flat"
    assert scorer.describe()["compiled"] is compile
    assert scorer.describe()["fused_products"] == 4
    scores = scorer.score(sequences, EOS)
    np.testing.assert_array_equal(scores.num_scored_tokens, exact.num_scored_tokens)
    np.testing.assert_allclose(scores.nll_sum, exact.nll_sum, atol=5e-2 * 100)
    assert scores.throughput.device_wait_share < 1


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "fp8-head"])
def test_fused_weights_exist_once(tmp_path, dtype):
    """At the worst with one product's weights beside them; an fp8 body takes half."""
    folder = save_model(build_model("qwen-104m", 1024, 65, seed=0), tmp_path / "m")
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 2  # in bfloat16
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loaded = load_model(folder, dtype, torch.device("cuda"))
    assert count_products(loaded.body) == 2 * loaded.body.config.num_hidden_layers
    assert torch.cuda.memory_allocated() - before < 1.1 * weights
    assert torch.cuda.max_memory_allocated() - before < 1.3 * weights


def test_sizes_of_batches_are_tried_on_the_device_and_give_the_same_scores(tmp_path, monkeypatch):
    monkeypatch.setattr("miniplm.scoring.batch_sizes.SIZES", (512, 1024, 2048))
    monkeypatch.setattr("miniplm.scoring.batch_sizes._MOST_SHARE", 1e9)
    monkeypatch.setattr("miniplm.scoring.engine.resolve_tokens_per_batch", lambda *_: 512)
    folder = save_model(make_llama(), tmp_path / "m")
    sequences = [np.random.default_rng(row).integers(1, 100, 129) for row in range(1000)]
    given = Scorer(load_model(folder, "bfloat16", torch.device("cuda")), 512).score(sequences, EOS)
    scorer = Scorer(load_model(folder, "bfloat16", torch.device("cuda")))
    scores = scorer.score(sequences, EOS)
    assert "1,024: " in scorer.describe()["batch_sizes"]
    np.testing.assert_allclose(scores.nll_sum, given.nll_sum, rtol=5e-3)


@pytest.mark.parametrize("name", ["fp8-tiles", "fp8-compiled", "fp8-compiled-small", "fp8-triton"])
@pytest.mark.parametrize(("width", "vocab_size"), [(512, 151_936), (2048, 50_257)])
def test_fp8_heads_agree_with_float64_of_the_rounded_numbers(name, width, vocab_size):
    if not supports_fp8(torch.device("cuda")):
        pytest.skip("no fp8 on this device")
    torch.manual_seed(0)
    weight_VH = torch.randn(vocab_size, width, device="cuda", dtype=torch.bfloat16) * 0.05
    hidden_NH = torch.randn(5000, width, device="cuda", dtype=torch.bfloat16)
    targets_N = torch.randint(0, vocab_size, (5000,)).cuda()
    kernel = choose_head_kernel(Head(weight_VH), compile_allowed=True, only=name, in_fp8=True)
    rows = torch.arange(0, 5000, 97, device="cuda")
    hidden, weight = ((q.double() * scale.double()[:, None]) for q, scale in map(quantize_rows, (hidden_NH[rows], weight_VH)))
    exact = torch.nn.functional.cross_entropy(hidden @ weight.T, targets_N[rows], reduction="none")
    torch.testing.assert_close(kernel.nll(hidden_NH, targets_N)[rows].double(), exact, atol=3e-2, rtol=0)


@pytest.mark.parametrize("name", ["compiled", "triton"])
@pytest.mark.parametrize(("width", "vocab_size"), [(512, 151_936), (2048, 50_000), (576, 49_152)])
def test_head_kernels_agree_with_float64(name, width, vocab_size):
    torch.manual_seed(0)
    weight_VH = torch.randn(vocab_size, width, device="cuda", dtype=torch.bfloat16) * 0.05
    hidden_NH, targets_N = (
        torch.randn(8192, width, device="cuda", dtype=torch.bfloat16),
        torch.randint(0, vocab_size, (8192,)).cuda(),
    )
    kernel = choose_head_kernel(Head(weight_VH), compile_allowed=True, only=name)
    rows = torch.arange(0, 8192, 97, device="cuda")
    exact = torch.nn.functional.cross_entropy(hidden_NH[rows].double() @ weight_VH.double().T, targets_N[rows], reduction="none")
    torch.testing.assert_close(kernel.nll(hidden_NH, targets_N)[rows].double(), exact, atol=2e-2, rtol=0)
