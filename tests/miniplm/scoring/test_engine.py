import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Phi3Config, Phi3ForCausalLM

from miniplm import layout
from miniplm.errors import CorpusError, DeviceError, ModelError, ScoreError
from miniplm.models.identity import identify_model
from miniplm.models.loading import load_model
from miniplm.scoring.batches import cut_segments, make_batches
from miniplm.scoring.engine import Scorer
from miniplm.scoring.forward import ForwardPass
from miniplm.scoring.shards import check_score_shard, score_shard
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import make_corpus, write_scores
from tests.miniplm.made_models import make_gpt2, make_llama, make_qwen2, save_model

EOS = 0
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    return save_model(make_llama(), tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def llama(llama_folder):
    return load_model(llama_folder, "float32", CPU)


def random_sequences(num, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    # EOS about every tenth token, so that the mask matters
    return [rng.choice(100, size=rng.integers(1, longest), p=[0.1] + [0.9 / 99] * 99).astype(np.uint16) for _ in range(num)]


def oracle(model, sequence):
    """Float64, one sequence, a plain loop over the targets."""
    token_ids = torch.tensor(sequence.astype(np.int64))
    if len(token_ids) < 2:
        return 0.0, 0
    with torch.no_grad():
        log_probs = model.double()(input_ids=token_ids[None, :-1]).logits[0].log_softmax(-1)
    scored = [t for t in range(len(token_ids) - 1) if token_ids[t] != EOS]
    return -sum(log_probs[t, token_ids[t + 1]].item() for t in scored), len(scored)


@pytest.mark.parametrize("make", [make_llama, make_qwen2, make_gpt2])
def test_scores_agree_with_a_float64_loop(make, tmp_path):
    model = make()
    sequences = random_sequences(12)
    scores = Scorer(load_model(save_model(model, tmp_path / "m"), "float32", CPU), 128).score(sequences, EOS)
    for row, sequence in enumerate(sequences):
        nll_sum, num_scored = oracle(model, sequence)
        assert scores.num_scored_tokens[row] == num_scored
        assert scores.nll_sum[row] == pytest.approx(nll_sum, abs=1e-4 * max(1, num_scored))


@pytest.mark.parametrize("tokens_per_batch", [1, 64, 100_000])
def test_scores_do_not_depend_on_the_batch(llama, tokens_per_batch):
    sequences = random_sequences(20, seed=3)
    base = Scorer(llama, 300).score(sequences, EOS)
    other = Scorer(llama, tokens_per_batch).score(sequences, EOS)
    np.testing.assert_allclose(other.nll_sum, base.nll_sum, atol=1e-3, rtol=1e-6)
    np.testing.assert_array_equal(other.num_scored_tokens, base.num_scored_tokens)


def test_a_sequence_without_a_scored_target_scores_zero(llama):
    scores = Scorer(llama, 64).score([np.array([EOS]), np.array([EOS, 7]), np.array([7, EOS])], EOS)
    assert scores.num_scored_tokens.tolist() == [0, 0, 1]
    assert scores.nll_sum[0] == scores.nll_sum[1] == 0
    assert scores.nll_sum[2] > 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 1025), max_size=60), st.integers(1, 5000), st.sampled_from(["flat", "rows"]))
def test_batches_hold_each_segment_once_and_keep_the_budget(lengths, budget, layout):
    batches = make_batches(np.array(lengths, dtype=np.int64), budget, layout)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        computed = (
            sum(lengths[index] for index in batch) if layout == "flat" else len(batch) * max(lengths[index] for index in batch)
        )
        assert len(batch) == 1 or computed <= budget


def test_segments_of_documents_leave_out_the_borders():
    sequences = [np.array([5, 6, EOS, 7, 8, 9, EOS]), np.array([EOS, EOS, 4]), np.array([3]), np.array([1, 2, 3])]
    whole = cut_segments(sequences, EOS, "sequence")
    assert (whole.sequence.tolist(), whole.start.tolist(), whole.length.tolist()) == ([0, 1, 3], [0, 0, 0], [6, 2, 2])
    parts = cut_segments(sequences, EOS, "document")
    assert (parts.sequence.tolist(), parts.start.tolist(), parts.length.tolist()) == ([0, 0, 3], [0, 3, 0], [2, 3, 2])


def test_a_position_encoding_that_follows_the_length_is_not_padded(tmp_path):
    """LongRoPE takes other factors beyond its first context: a short sequence padded to a long one would score otherwise."""
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 32,
        },
        pad_token_id=0,
        initializer_range=0.4,
    )
    model = Phi3ForCausalLM(config).eval()
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 100, length) for length in (20, 25, 60, 30, 64, 20)]
    loaded = load_model(save_model(model, tmp_path / "m"), "float32", CPU)
    scores = Scorer(loaded, 4096).score(sequences, EOS)
    for row, sequence in enumerate(sequences):
        assert scores.nll_sum[row] == pytest.approx(oracle(model, sequence)[0], abs=1e-4 * len(sequence))


def fail_when(monkeypatch, is_too_much, error):
    """Lets every forward pass of more tokens than allowed fail; the numbers of tokens that were tried."""
    sizes = []
    real = ForwardPass.__call__

    def forward(self, inputs):
        sizes.append(inputs.token_ids_RT.numel())
        if is_too_much(sizes[-1]):
            raise error
        return real(self, inputs)

    monkeypatch.setattr(ForwardPass, "__call__", forward)
    return sizes


def test_out_of_memory_halves_the_batch_and_goes_on(llama, monkeypatch):
    sequences = random_sequences(16, seed=5)
    base = Scorer(llama, 100_000).score(sequences, EOS)
    scorer = Scorer(llama, 100_000)
    sizes = fail_when(monkeypatch, lambda num_tokens: num_tokens > 120, RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    told = []
    scores = scorer.score(sequences, EOS, lambda num_tokens, throughput: told.append(num_tokens))
    np.testing.assert_allclose(scores.nll_sum, base.nll_sum, atol=1e-3)
    np.testing.assert_array_equal(scores.num_scored_tokens, base.num_scored_tokens)
    num_inputs = sum(len(sequence) - 1 for sequence in sequences)
    assert sizes[0] == num_inputs
    assert sizes[1] in range(num_inputs // 2 - 60, num_inputs // 2 + 1)
    assert sum(told) == sum(map(len, sequences))
    # what did not fit is not tried again
    num_tried = len(sizes)
    scorer.score(sequences, EOS)
    assert max(sizes[num_tried:]) <= 120


def test_what_fills_a_batch_is_given_up_before_a_sequence_is(llama, monkeypatch):
    """A compiled body computes whole batches; one short sequence in a batch that is too large is no sequence that is too large."""
    scorer = Scorer(llama, 1024)
    monkeypatch.setattr(ForwardPass, "has_static_shapes", True)
    expected = Scorer(llama, 64).score([np.arange(1, 33)], EOS).nll_sum
    sizes = fail_when(monkeypatch, lambda num_tokens: num_tokens > 300, torch.OutOfMemoryError("CUDA out of memory"))
    np.testing.assert_allclose(scorer.score([np.arange(1, 33)], EOS).nll_sum, expected, rtol=1e-6)
    assert sizes[-3:] == [1024, 512, 256]
    assert scorer.tokens_per_batch == 256


def test_one_sequence_that_does_not_fit_is_an_error(llama, monkeypatch):
    scorer = Scorer(llama, 64)
    sizes = fail_when(monkeypatch, lambda num_tokens: True, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ScoreError, match=r"one sequence of 5 tokens does not fit in memory on cpu \(.* GiB free\)"):
        scorer.score([np.arange(1, 6)] * 4, EOS)
    assert sizes == [16, 8, 4]


def test_an_error_that_is_not_memory_is_not_swallowed(llama, monkeypatch):
    scorer = Scorer(llama, 64)
    fail_when(monkeypatch, lambda num_tokens: True, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        scorer.score([np.arange(1, 6)] * 4, EOS)


def test_a_device_that_disappears_is_said_and_not_scored_on(llama, monkeypatch):
    scorer = Scorer(llama, 64)
    fail_when(monkeypatch, lambda num_tokens: True, RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(DeviceError, match=r"cpu failed during scoring by model llama \(CUDA error: unspecified launch failure\)"):
        scorer.score([np.arange(1, 6)] * 4, EOS)


def test_token_id_beyond_the_vocabulary(llama):
    with pytest.raises(ModelError, match=r"row 1: token id 100 is beyond the vocabulary .*\(100 ids\)"):
        Scorer(llama, 64).score([np.array([1, 2]), np.array([1, 100])], EOS)


def test_sequence_longer_than_the_positions(llama):
    Scorer(llama, 256).score([np.ones(129, dtype=np.int64)], EOS)
    with pytest.raises(ModelError, match="129 inputs are more than the 128 positions"):
        Scorer(llama, 256).score([np.ones(130, dtype=np.int64)], EOS)


def make_scored_shard(root, folder, model):
    storage = Storage(str(root))
    corpus = make_corpus(storage, {"candidate": [random_sequences(6, seed=8)]})
    entry = identify_model(folder, "llama", "float32")
    (shard,) = corpus.split_shards("candidate")
    return storage, corpus, shard, entry, score_shard(storage, corpus, shard, entry, Scorer(model, 256))


def test_shard_is_scored_and_its_bytes_repeat(tmp_path, llama, llama_folder):
    storage, corpus, shard, entry, manifest = make_scored_shard(tmp_path, llama_folder, llama)
    assert check_score_shard(storage, shard, entry.model_id).state == "done"
    assert manifest.num_sequences == 6
    again = score_shard(storage, corpus, shard, entry, Scorer(llama, 256))
    assert again.digest == manifest.digest


@pytest.mark.parametrize("fault", ["truncated", "flipped", "gone", "manifest"])
def test_damaged_score_shard_is_broken_and_says_why(tmp_path, llama, llama_folder, fault):
    storage, _, shard, entry, _ = make_scored_shard(tmp_path, llama_folder, llama)
    path = tmp_path / layout.score_shard(shard.corpus_id, entry.model_id, 0)
    content = path.read_bytes()
    if fault == "truncated":
        path.write_bytes(content[:-1])
        reason = "bytes, its manifest says"
    elif fault == "flipped":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
        reason = "digests differ"
    elif fault == "gone":
        path.unlink()
        reason = "is gone"
    else:
        (tmp_path / layout.score_shard_manifest(shard.corpus_id, entry.model_id, 0)).write_text("{")
        reason = "manifest is damaged"
    state = check_score_shard(storage, shard, entry.model_id)
    assert state.state == "broken"
    assert reason in state.reason


@pytest.mark.parametrize(
    ("nll_sum", "ids", "reason"),
    [
        ([1, float("nan"), 1, 1, 1, 1], None, "1 of its NLLs"),
        ([1] * 6, [0, 0, 1, 2, 3, 4], "5 distinct sequence ids"),
        ([1] * 5, None, "5 rows"),
    ],
)
def test_wrong_content_under_a_right_digest_is_broken(tmp_path, nll_sum, ids, reason):
    storage = Storage(str(tmp_path))
    corpus = make_corpus(storage, {"candidate": [random_sequences(6)]})
    (shard,) = corpus.split_shards("candidate")
    write_scores(storage, shard, "m", nll_sum, [1] * len(nll_sum), ids)
    state = check_score_shard(storage, shard, "m")
    assert state.state == "broken"
    assert reason in state.reason


def test_file_without_a_manifest_is_missing(tmp_path, llama, llama_folder):
    storage, _, shard, entry, _ = make_scored_shard(tmp_path, llama_folder, llama)
    storage.delete(layout.score_shard_manifest(shard.corpus_id, entry.model_id, 0))
    assert check_score_shard(storage, shard, entry.model_id).state == "missing"


def test_non_finite_scores_are_set_aside_and_name_the_sequences(tmp_path, llama, llama_folder, monkeypatch):
    storage, corpus, shard, entry, _ = make_scored_shard(tmp_path, llama_folder, llama)
    storage.delete(layout.scores_folder("made", entry.model_id))
    scorer = Scorer(llama, 256)
    real = scorer.score

    def with_nan(*args, **kwargs):
        scores = real(*args, **kwargs)
        scores.nll_sum[[1, 3, 4]] = [float("nan"), 1e200, float("inf")]  # a selection would refuse the second
        return scores

    monkeypatch.setattr(scorer, "score", with_nan)
    with pytest.raises(
        ScoreError, match=r"shard-00000: 3 of 6 sequences have a non-finite NLL .*\(sequence ids 1, 3, 4\).*non-finite/shard-00000"
    ):
        score_shard(storage, corpus, shard, entry, scorer)
    assert check_score_shard(storage, shard, entry.model_id).state == "missing"
    aside = tmp_path / layout.non_finite_scores("made", entry.model_id, 0)
    assert np.isfinite(pq.read_table(aside)["nll_sum"].to_numpy()).tolist() == [True, False, True, True, False, True]
    monkeypatch.setattr(scorer, "score", real)
    score_shard(storage, corpus, shard, entry, scorer)
    assert check_score_shard(storage, shard, entry.model_id).state == "done"
    assert not aside.exists()


def test_a_nan_in_one_sequence_stays_there(tmp_path):
    """A token whose embedding is NaN: its sequence is not finite, its neighbours in the batch are what they were."""
    model = make_llama()
    sequences = [np.array([1, 2, 3]), np.array([4, 99, 5]), np.array([6, 7, 8, 9])]
    loaded = load_model(save_model(model, tmp_path / "m"), "float32", CPU)
    base = Scorer(loaded, 256).score(sequences, EOS)
    loaded.body.embed_tokens.weight.data[99] = float("nan")
    loaded.head.weight_VH.data[99] = 0
    scores = Scorer(loaded, 256).score(sequences, EOS)
    assert np.isfinite(scores.nll_sum).tolist() == [True, False, True]
    np.testing.assert_array_equal(scores.num_scored_tokens, base.num_scored_tokens)


def test_damaged_corpus_shard_is_not_scored(tmp_path, llama, llama_folder):
    storage, corpus, shard, entry, _ = make_scored_shard(tmp_path, llama_folder, llama)
    path = tmp_path / layout.corpus_shard("made", "candidate", 0)
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(CorpusError, match="shard-00000"):
        score_shard(storage, corpus, shard, entry, Scorer(llama, 256))
