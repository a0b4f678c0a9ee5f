"""The same scores on a CUDA device as in float64 on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miniplm.models.loading import load_model
from miniplm.scoring.engine import Scorer
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
