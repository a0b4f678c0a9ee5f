"""The same scores on a CUDA device as in float64 on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miniplm.models.loading import load_model
from miniplm.nll import Head
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
    scores = scorer.score(sequences, EOS)
    np.testing.assert_array_equal(scores.num_scored_tokens, exact.num_scored_tokens)
    np.testing.assert_allclose(scores.nll_sum, exact.nll_sum, atol=5e-2 * 100)
    assert scores.throughput.device_wait_share < 1


@pytest.mark.parametrize("name", ["compiled", "triton", "quack"])
@pytest.mark.parametrize(("width", "vocab_size"), [(512, 151_936), (2048, 50_000), (576, 49_152)])
def test_head_kernels_agree_with_float64(name, width, vocab_size):
    if name == "quack":
        pytest.importorskip("quack")
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
