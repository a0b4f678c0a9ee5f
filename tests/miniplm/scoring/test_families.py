"""Every family of models scores as its own float64 forward pass, however its sequences are laid out in batches, or is refused by name."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from miniplm.errors import ModelError
from miniplm.models.loading import LoadedModel, load_model
from miniplm.scoring.engine import Scorer
from miniplm.scoring.forward import ForwardPass
from tests.miniplm.made_models import save_model
from tests.miniplm.made_zoo import LEFT_OUT, REFUSED, ZOO, F, S, make_family

EOS = 0
CPU = torch.device("cpu")
# Their eager attention takes no float64; they are compared with their own float32.
NO_FLOAT64 = {"inkling2_text", "xglm"}
LONGEST = 60
# Families whose segments may lie in one row; all others are scored in padded rows.
_FLAT = """
afmoe apertus arcee aria_text beam bert-generation biogpt bitnet cohere cohere2 cohere2_moe cohere_compass_text ctrl cwm
diffllama dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo gemma gemma3_text gemma3n_text gemma4_text
gemma4_unified_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox granite granitemoe granitemoeshared helium hrm_text
hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax jais2 jetmoe kolibri1 laguna llama mellum minimax_m2 ministral ministral3
mistral mixtral moshi nanochat olmo olmo2 olmo3 olmoe opt persimmon phi phi3 qwen2 qwen3 qwen3_moe seed_oss smollm3 solar_open
starcoder2 whisper
"""
FLAT = set(_FLAT.split())


def make_sequences(lengths=(2, 50, 9, 33, LONGEST, 17), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.choice(100, size=length, p=[0.05] + [0.95 / 99] * 99).astype(np.uint16) for length in lengths]


def split_documents(sequence):
    """The documents of a sequence, each with its EOS."""
    return np.split(sequence, np.flatnonzero(sequence == EOS) + 1)


def load_oracle(folder: Path, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The model of a folder as transformers computes it, with eager attention and experts, which take any dtype."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._experts_implementation = "eager"
    return model.eval()


@torch.no_grad()
def oracle(model, token_ids):
    """NLL of one run of tokens by itself, summed over the targets whose input is not EOS."""
    if len(token_ids) < 2:
        return 0.0
    if "dynamic" in str(getattr(model.config, "rope_parameters", "")):
        model = copy.deepcopy(model)  # it keeps the positions of the longest text so far
    ids = torch.tensor(token_ids.astype(np.int64))
    log_probs = model(input_ids=ids[None, :-1], use_cache=False).logits[0].double().log_softmax(-1)
    nll = -log_probs.gather(1, ids[1:, None])[:, 0]
    return nll[ids[:-1] != EOS].sum().item()


class Oracle:
    """The NLL of runs of tokens by the model of a folder, each computed once."""

    def __init__(self, folder: Path) -> None:
        self._model = load_oracle(folder, torch.float32 if folder.name in NO_FLOAT64 else torch.float64)
        self._known: dict[bytes, float] = {}

    def nll(self, token_ids) -> float:
        key = token_ids.tobytes()
        if key not in self._known:
            self._known[key] = oracle(self._model, token_ids)
        return self._known[key]


def check_against_oracle(exact: Oracle, loaded: LoadedModel, attentions=("sequence", "document")) -> Scorer:
    sequences = make_sequences()
    for attention in attentions:
        scorer = Scorer(loaded, 128, attention)
        scores = scorer.score(sequences, EOS)
        for row, sequence in enumerate(sequences):
            runs = [sequence] if attention == "sequence" else split_documents(sequence)
            num_scored = int((sequence[:-1] != EOS).sum())
            assert scores.num_scored_tokens[row] == num_scored
            expected = sum(exact.nll(run) for run in runs)
            assert scores.nll_sum[row] == pytest.approx(expected, abs=1e-4 * max(1, num_scored)), (attention, row)
    return scorer


def test_every_family_of_transformers_is_in_the_zoo_or_left_out_with_a_reason():
    assert set(ZOO) | set(LEFT_OUT) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not set(ZOO) & set(LEFT_OUT)


@pytest.mark.parametrize("name", sorted(set(ZOO) - set(REFUSED)))
def test_a_family_scores_as_its_own_float64(tmp_path, monkeypatch, name):
    """In each layout that it can be computed in: which one is taken is a matter of the device and dtype too."""
    folder = save_model(make_family(name), tmp_path / name)
    loaded = load_model(folder, "float32", CPU)
    exact = Oracle(folder)
    scorer = check_against_oracle(exact, loaded)
    assert scorer.forward.layout == ("flat" if name in FLAT else "rows")
    if name in FLAT:
        monkeypatch.setattr(ForwardPass, "_try_flat", lambda *_: "told so")
        assert check_against_oracle(exact, loaded, ("sequence",)).forward.layout == "rows"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_family_that_cannot_be_right_is_refused_by_name(tmp_path, name):
    folder = save_model(make_family(name), tmp_path / name)
    with pytest.raises(ModelError, match=rf"{name}.* {REFUSED[name]}"):
        load_model(folder, "float32", CPU)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"is_causal": False}),
        ("qwen2_moe", {"is_causal": False}),
        ("gpt2", {"is_causal": False}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_config_that_shows_a_token_what_follows_it_is_refused(tmp_path, name, changes, dtype):
    model = make_family(name, **changes)
    key, value = next(iter(changes.items()))
    with pytest.raises(ModelError, match=rf"is no causal language model as its config\.json has it .*{key}: {value}"):
        load_model(save_model(model, tmp_path / name), dtype, CPU)


def test_a_model_that_transformers_computes_in_two_ways_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"\(FalconForCausalLM\) cannot be scored: it has alibi: true"):
        load_model(save_model(make_family("falcon", alibi=True), tmp_path / "falcon"), "bfloat16", CPU)


def test_the_two_ways_of_attention_are_compared(tmp_path, monkeypatch):
    """As a mistake in one of them would show, say ALiBi that is added twice."""
    from transformers.models.llama import modeling_llama

    real = modeling_llama.eager_attention_forward
    monkeypatch.setattr(
        modeling_llama, "eager_attention_forward", lambda *given, scaling, **named: real(*given, scaling=2 * scaling, **named)
    )
    with pytest.raises(ModelError, match=r"gives other hidden states as 'sdpa' than as 'eager' \(by 0\.\d+ of themselves\)"):
        load_model(save_model(make_family("llama"), tmp_path / "llama"), "float32", CPU)


_LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 32}


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **parameters}}


@pytest.mark.parametrize(
    ("name", "layout", "changes"),
    [
        # A window or chunk that is longer than what a short probe would see.
        ("qwen2_moe", "rows", {"sliding_window": 40}),
        ("phimoe", "rows", {"sliding_window": 40}),
        ("llama4_text", "rows", {"attention_chunk_size": 40}),
        ("gpt_neo", "rows", {"window_size": 40}),
        ("mistral", "flat", {"sliding_window": 40}),
        ("cohere2", "flat", {"sliding_window": 40}),
        ("gemma2", "flat", {"sliding_window": 40, "attn_logit_softcapping": None}),
        ("qwen2", "flat", {"layer_types": None, "max_window_layers": 1, "sliding_window": 40}),
        ("qwen2_moe", "flat", {"layer_types": [F, F]}),
        ("minimax_m3_vl_text", "rows", {"layer_types": [F, "minimax_m3_sparse"], "index_block_size": 4, "index_topk_blocks": 2}),
        # Positions.
        ("llama", "flat", rope("linear", factor=2.0)),
        ("llama", "flat", rope("yarn", factor=2.0, original_max_position_embeddings=16)),
        ("llama", "rows", rope("longrope", factor=4.0, **_LONGROPE)),
        ("phi3", "rows", rope("longrope", **_LONGROPE) | {"original_max_position_embeddings": 32}),
        ("bloom", "rows", {"n_head": 3, "hidden_size": 48}),
        ("smollm3", "flat", {"no_rope_layers": [1, 0]}),
        # Other forms of a layer.
        ("gpt_neox", "flat", {"use_parallel_residual": False}),
        ("falcon", "rows", {"new_decoder_architecture": True}),
        ("llama", "flat", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
        ("granite", "flat", {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    ],
)
def test_a_family_in_another_form_scores_as_its_own_float64(tmp_path, name, layout, changes):
    folder = save_model(make_family(name, **changes), tmp_path / name)
    scorer = check_against_oracle(Oracle(folder), load_model(folder, "float32", CPU))
    assert scorer.forward.layout == layout


@pytest.mark.parametrize(
    "changes",
    [
        rope("dynamic", factor=4.0),
        {
            "rope_parameters": {
                F: {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
                S: {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ],
)
def test_dynamic_positions_are_those_of_the_text_itself(tmp_path, monkeypatch, changes):
    """Whatever was read before: transformers keeps the positions of the longest text so far."""
    monkeypatch.setattr("miniplm.scoring.engine._check_sequences", lambda *_: None)  # longer than the positions it was made for
    name = "gemma3_text" if F in changes["rope_parameters"] else "llama"
    folder = save_model(make_family(name, **changes, max_position_embeddings=16), tmp_path / name)
    loaded = load_model(folder, "float32", CPU)
    check_against_oracle(Oracle(folder), loaded)
    check_against_oracle(Oracle(folder), loaded)


def test_rows_of_one_length_where_padding_changes_a_text(tmp_path, monkeypatch, caplog):
    """Whatever the config says: it is tried."""
    monkeypatch.setattr("miniplm.models.loading.depends_on_length", lambda config: False)
    loaded = load_model(save_model(make_family("bloom"), tmp_path / "bloom"), "float32", CPU)
    assert not Scorer(loaded, 128).forward.needs_equal_lengths
    real = loaded.body.forward
    monkeypatch.setattr(
        loaded.body, "forward", lambda input_ids, **named: real(input_ids=(input_ids + input_ids.shape[1]) % 100, **named)
    )
    with caplog.at_level(logging.INFO, "miniplm"):
        assert Scorer(loaded, 128).forward.needs_equal_lengths
    assert "is scored in rows of one length" in caplog.text


def test_a_model_whose_texts_change_with_those_beside_them_is_refused(tmp_path, monkeypatch):
    loaded = load_model(save_model(make_family("bloom"), tmp_path / "bloom"), "float32", CPU)
    real = loaded.body.forward
    monkeypatch.setattr(
        loaded.body, "forward", lambda input_ids, **named: real(input_ids=(input_ids + len(input_ids)) % 100, **named)
    )
    with pytest.raises(ModelError, match=r"hidden states change with the texts that are computed beside it"):
        Scorer(loaded, 128)


@pytest.mark.parametrize("name", ["falcon", "gemma2", "gemma3_text", "gpt2", "llama", "mamba2", "mistral", "qwen2_moe"])
def test_low_precision_takes_the_same_layout_and_stays_near(tmp_path, name):
    folder = save_model(make_family(name), tmp_path / name)
    scorer = Scorer(load_model(folder, "bfloat16", CPU), 128)
    assert scorer.forward.layout == ("flat" if name in FLAT else "rows")
    sequences = make_sequences((30, 45), seed=2)
    scores = scorer.score(sequences, EOS)
    exact = load_oracle(folder)
    for row, sequence in enumerate(sequences):
        assert scores.nll_sum[row] == pytest.approx(oracle(exact, sequence), rel=0.1, abs=1)


def test_a_large_channel_does_not_hide_what_leaks(tmp_path):
    """Falcon ignores the borders of segments; a channel that is large for all tokens, as trained models have, must not cover that up."""
    model = make_family("falcon")
    model.transformer.ln_f.bias.data[3] = 60
    loaded = load_model(save_model(model, tmp_path / "falcon"), "bfloat16", CPU)
    assert Scorer(loaded, 128).forward.layout == "rows"


@pytest.mark.parametrize("name", ["deepseek_v32", "llama", "lfm2", "mamba", "mistral"])
def test_scores_do_not_depend_on_neighbours(tmp_path, name):
    loaded = load_model(save_model(make_family(name), tmp_path / name), "float32", CPU)
    sequences = make_sequences(seed=1)
    together = Scorer(loaded, 10_000).score(sequences, EOS)
    alone = [Scorer(loaded, 1).score([sequence], EOS).nll_sum[0] for sequence in sequences]
    np.testing.assert_allclose(together.nll_sum, alone, atol=2e-3, rtol=1e-6)
