"""Every family of models scores as its own float64 forward pass, however its sequences are laid out in batches."""

import numpy as np
import pytest
import torch

from miniplm.models.loading import load_model
from miniplm.scoring.engine import Scorer
from tests.miniplm.made_models import FAMILIES, make_family, save_model

EOS = 0
CPU = torch.device("cpu")
# What carries a state or an attention of its own from one sequence to the next is scored in rows.
ROWS = {"mamba", "mamba2", "gemma2", "falcon"}


def make_sequences(num, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.choice(100, size=rng.integers(2, 50), p=[0.1] + [0.9 / 99] * 99).astype(np.uint16) for _ in range(num)]


def split_documents(sequence):
    """The documents of a sequence, each with its EOS."""
    return np.split(sequence, np.flatnonzero(sequence == EOS) + 1)


@torch.no_grad()
def oracle(model, token_ids):
    """Float64 NLL of one run of tokens, summed over the targets whose input is not EOS."""
    if len(token_ids) < 2:
        return 0.0
    ids = torch.tensor(token_ids.astype(np.int64))
    log_probs = model(input_ids=ids[None, :-1], use_cache=False).logits[0].log_softmax(-1)
    nll = -log_probs.gather(1, ids[1:, None])[:, 0]
    return nll[ids[:-1] != EOS].sum().item()


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request, tmp_path_factory):
    model = make_family(request.param)
    folder = save_model(model, tmp_path_factory.mktemp("model") / request.param)
    return request.param, model.double(), load_model(folder, "float32", CPU)


@pytest.mark.parametrize("attention", ["sequence", "document"])
def test_scores_agree_with_float64(family, attention):
    name, model, loaded = family
    sequences = make_sequences(10)
    scorer = Scorer(loaded, 128, attention)
    assert scorer.forward.layout == ("rows" if name in ROWS else "flat")
    scores = scorer.score(sequences, EOS)
    for row, sequence in enumerate(sequences):
        runs = [sequence] if attention == "sequence" else split_documents(sequence)
        num_scored = int((sequence[:-1] != EOS).sum())
        assert scores.num_scored_tokens[row] == num_scored
        assert scores.nll_sum[row] == pytest.approx(sum(oracle(model, run) for run in runs), abs=1e-4 * max(1, num_scored))


def test_low_precision_takes_the_same_layout_and_stays_near(family, tmp_path):
    name, model, _ = family
    loaded = load_model(save_model(make_family(name), tmp_path / name), "bfloat16", CPU)
    scorer = Scorer(loaded, 128)
    assert scorer.forward.layout == ("rows" if name in ROWS else "flat")
    sequences = make_sequences(6, seed=2)
    scores = scorer.score(sequences, EOS)
    for row, sequence in enumerate(sequences):
        assert scores.nll_sum[row] == pytest.approx(oracle(model, sequence), rel=0.1, abs=1)


def test_a_large_channel_does_not_hide_what_leaks(tmp_path):
    """Falcon ignores the borders of segments; a channel that is large for all tokens, as trained models have, must not cover that up."""
    model = make_family("falcon")
    model.transformer.ln_f.bias.data[3] = 60
    loaded = load_model(save_model(model, tmp_path / "falcon"), "bfloat16", CPU)
    assert Scorer(loaded, 128).forward.layout == "rows"


def test_scores_do_not_depend_on_neighbours(family):
    _, _, loaded = family
    sequences = make_sequences(8, seed=1)
    together = Scorer(loaded, 10_000).score(sequences, EOS)
    alone = [Scorer(loaded, 1).score([sequence], EOS).nll_sum[0] for sequence in sequences]
    np.testing.assert_allclose(together.nll_sum, alone, atol=2e-3, rtol=1e-6)
