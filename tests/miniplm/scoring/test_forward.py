"""How a forward pass is run: compiled or not, in which layout, by which kernel."""

import logging

import numpy as np
import pytest
import torch

from miniplm.models.loading import load_model
from miniplm.models.packed_linear import PackedLinear, can_pack
from miniplm.models.throughput import Throughput, count_flops_per_token
from miniplm.scoring.engine import Scorer
from miniplm.scoring.forward import decide_compiling
from miniplm.scoring.heads import choose_head_kernel
from tests.miniplm.made_models import make_gpt2, make_llama, save_model

EOS = 0
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(make_llama(), tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def llama(folder):
    return load_model(folder, "float32", CPU)


def make_sequences(num):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 100, rng.integers(2, 60)) for _ in range(num)]


def test_a_compiled_body_gives_the_same_scores_and_fills_its_batches(tmp_path):
    folder = save_model(make_llama(num_layers=1), tmp_path / "llama")  # the compiler takes seconds a layer
    sequences = make_sequences(9)
    plain = Scorer(load_model(folder, "float32", CPU), 128, compile=False).score(sequences, EOS)
    scorer = Scorer(load_model(folder, "float32", CPU, will_compile=True), 128, compile=True)
    scorer.warm_up(59)
    shapes = []
    real = scorer.forward._compiled._compiled
    scorer.forward._compiled._compiled = lambda **arguments: shapes.append(arguments["input_ids"].shape) or real(**arguments)
    compiled = scorer.score(sequences, EOS)
    np.testing.assert_allclose(compiled.nll_sum, plain.nll_sum, rtol=1e-5)
    np.testing.assert_array_equal(compiled.num_scored_tokens, plain.num_scored_tokens)
    assert set(shapes) == {(1, 128)}
    assert scorer.describe()["compiled"] is True
    assert scorer.forward.notes == []


def test_a_body_that_does_not_compile_runs_as_it_is_and_says_so_once(llama, caplog):
    sequences = make_sequences(9)
    plain = Scorer(llama, 64, compile=False).score(sequences, EOS)
    scorer = Scorer(llama, 64, compile=True)

    def broken(**_):
        raise RuntimeError("Unsupported: an odd model")

    scorer.forward._compiled._compiled = broken
    with caplog.at_level(logging.WARNING, "miniplm"):
        scores = scorer.score(sequences, EOS)
    np.testing.assert_allclose(scores.nll_sum, plain.nll_sum, rtol=1e-6)
    assert [record.message for record in caplog.records] == [
        "torch.compile failed on llama (Unsupported: an odd model); it runs uncompiled, more slowly"
    ]
    assert scorer.describe()["compiled"] is False


@pytest.mark.parametrize(
    ("compile", "layout", "device", "is_spread", "decided"),
    [
        ("auto", "flat", "cuda", False, (True, True)),
        ("auto", "rows", "cuda", False, (False, True)),  # each shape of padded rows would cost a graph
        ("auto", "flat", "cuda", True, (False, False)),
        ("auto", "flat", "cpu", False, (False, False)),
        (True, "rows", "cpu", False, (True, True)),  # as asked for
        (False, "flat", "cuda", False, (False, False)),
    ],
)
def test_what_is_compiled(compile, layout, device, is_spread, decided):
    assert decide_compiling(compile, layout, device, is_spread) == decided


@pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this CPU has no AVX-512")
def test_linears_are_packed_on_a_cpu_and_compute_the_same(folder):
    packed, plain = load_model(folder, "float32", CPU), make_llama()
    assert sum(isinstance(module, PackedLinear) for module in packed.body.modules()) == 14
    token_ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        expected = plain.model(input_ids=token_ids).last_hidden_state
        torch.testing.assert_close(packed.body(input_ids=token_ids).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_a_head_kernel_that_does_not_work_here_is_refused(llama):
    assert choose_head_kernel(llama.head, compile_allowed=True).name == "tiles"
    with pytest.raises(ValueError, match=r"head triton left out: .* \(on cpu\)"):
        choose_head_kernel(llama.head, compile_allowed=True, only="triton")


def test_a_compiled_head_agrees_with_tiles(llama):
    hidden, targets = torch.randn(33, 32), torch.randint(0, 100, (33,))
    compiled = choose_head_kernel(llama.head, compile_allowed=True, only="compiled")
    with torch.no_grad():
        torch.testing.assert_close(compiled.nll(hidden, targets), choose_head_kernel(llama.head, True).nll(hidden, targets))


def test_the_published_flops_a_token():
    """Qwen1.5-1.8B and the 104M reference at 1,024 inputs: 3.15e9 and 0.215e9 operations a token."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    from miniplm.models.nll import Head

    for hidden, intermediate, layers, heads, wanted in ((2048, 5504, 24, 16, 3.15e9), (512, 1408, 8, 8, 0.215e9)):
        config = Qwen2Config(
            vocab_size=151936,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert count_flops_per_token(model.model, Head(model.lm_head.weight), 1024) == pytest.approx(wanted, rel=0.005)


def test_flops_of_gpt2_count_its_convolutions(tmp_path):
    loaded = load_model(save_model(make_gpt2(), tmp_path / "gpt2"), "float32", CPU)
    weights = 2 * (4 * 32 * 32 + 2 * 4 * 32 * 32) + 100 * 32
    assert count_flops_per_token(loaded.body, loaded.head, 9) == 2 * weights + 4 * 2 * 32 * 10 / 2


def test_throughput_says_its_shares():
    throughput = Throughput(num_tokens=1000, seconds=2.0, wait_seconds=0.01, flops_per_token=1e9, matmul_peak=1e12)
    assert throughput.tokens_per_second == 500
    assert throughput.matmul_peak_share == 0.5
    assert throughput.device_wait_share == 0.005
    assert throughput.describe() == "50 % of matmul peak, waits 0.5 %"
    assert Throughput(1, 1.0, 0.0, None, None).describe() == "waits 0.0 %"


def test_two_threads_share_one_scorer(llama):
    """One computes while another prepares; the results are those of one after the other."""
    from concurrent.futures import ThreadPoolExecutor

    scorer = Scorer(llama, 64)
    parts = [make_sequences(9), make_sequences(5), make_sequences(7)]
    expected = [scorer.score(part, EOS).nll_sum for part in parts]
    with ThreadPoolExecutor(2) as pool:
        for scores, wanted in zip(pool.map(lambda part: scorer.score(part, EOS), parts), expected, strict=True):
            np.testing.assert_array_equal(scores.nll_sum, wanted)
