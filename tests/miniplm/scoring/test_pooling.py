from itertools import pairwise

import numpy as np
import pytest
import torch

from miniplm.models.loading import load_model
from miniplm.scoring.engine import Scorer
from miniplm.scoring.forward import ForwardPass
from miniplm.scoring.pooling import pool_states
from tests.miniplm.made_models import VOCAB_SIZE, make_llama, save_model

EOS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(make_llama(), tmp_path_factory.mktemp("llama"))


def draw(num=17):
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB_SIZE, rng.integers(2, 60)) for _ in range(num)] + [np.array([5]), np.array([EOS, 7])]


def oracle(model, sequence, attention):
    """The states of the inputs whose target is scored, one text at a time, in float64."""
    ends = np.append(np.flatnonzero(sequence[:-1] == EOS), len(sequence) - 1)
    borders = [0, len(sequence) - 1] if attention == "sequence" else [0, *(ends + 1).tolist()]
    states = []
    for start, stop in pairwise(borders):
        inputs = sequence[start : min(stop, len(sequence) - 1)]
        if len(inputs):
            hidden = model.model(input_ids=torch.tensor(inputs)[None]).last_hidden_state[0]
            states.append(hidden[torch.tensor(inputs != EOS)])
    together = torch.cat(states) if states else torch.zeros(0, 32)
    return together.mean(dim=0).numpy() if len(together) else np.zeros(32)


@pytest.mark.parametrize("attention", ["sequence", "document"])
def test_states_are_those_of_each_sequence_alone(folder, attention):
    sequences = draw()
    model = make_llama().double()
    with torch.no_grad():
        expected = np.stack([oracle(model, sequence, attention) for sequence in sequences])
    for tokens_per_batch in (1, 64, 4096):
        scorer = Scorer(load_model(folder, "float32", torch.device("cpu")), tokens_per_batch, attention)
        assert pool_states(scorer, sequences, EOS) == pytest.approx(expected, abs=1e-4)


def test_padding_is_no_part_of_a_mean(folder, monkeypatch):
    sequences = draw()
    flat = pool_states(Scorer(load_model(folder, "float32", torch.device("cpu"))), sequences, EOS)
    monkeypatch.setattr(ForwardPass, "_find_layout", lambda self: "rows")
    scorer = Scorer(load_model(folder, "float32", torch.device("cpu")), 200)
    assert scorer.forward.layout == "rows"
    assert pool_states(scorer, sequences, EOS) == pytest.approx(flat, abs=1e-5)


def test_memory_that_runs_out_halves_the_batch(folder, monkeypatch):
    scorer = Scorer(load_model(folder, "float32", torch.device("cpu")), 256)
    expected = pool_states(scorer, draw(), EOS)
    compute = ForwardPass.compute_states

    def fail_on_many(self, inputs):
        if inputs.targets_M.numel() > 100:
            raise RuntimeError("CUDA out of memory")
        return compute(self, inputs)

    monkeypatch.setattr(ForwardPass, "compute_states", fail_on_many)
    assert pool_states(scorer, draw(), EOS) == pytest.approx(expected, abs=1e-5)
    assert scorer.tokens_per_batch <= 128
