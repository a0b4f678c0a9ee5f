"""Presets have the published sizes; fresh models depend on their seed and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from miniplm.errors import ConfigError
from miniplm.models.architectures import (
    build_empty_model,
    build_model,
    count_parameters,
    describe_architecture,
    resolve_vocab_size,
)
from miniplm.models.presets import PRESETS
from tests.miniplm.made_zoo import make_config

QWEN_VOCAB_SIZE = 151_936

# Counted by hand from the published widths: V*H (twice if untied) + L*(4*H*H + 3*H + 3*H*F + 2*H) + H.
PUBLISHED = {
    "qwen-104m": (512, 1408, 8, 8, 103_502_336),
    "qwen-200m": (768, 2112, 12, 12, 203_437_824),
    "qwen-300m": (768, 2112, 18, 12, 246_812_928),
    "qwen-500m": (1024, 2816, 24, 16, 463_987_712),
    "qwen-1.2b": (1536, 4224, 24, 16, 1_160_566_272),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_preset_has_the_published_shape_and_parameter_count(name: str) -> None:
    hidden, ffn, layers, heads, parameters = PUBLISHED[name]
    model = build_empty_model(name, QWEN_VOCAB_SIZE)
    config = model.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (hidden, ffn, layers)
    assert config.num_attention_heads == config.num_key_value_heads == heads
    assert config.rope_parameters["rope_theta"] == 1e6
    assert config.max_position_embeddings >= 1025
    assert model.model.layers[0].self_attn.q_proj.bias is not None
    assert count_parameters(model) == parameters
    embeddings = 1 if config.tie_word_embeddings else 2
    by_hand = embeddings * QWEN_VOCAB_SIZE * hidden + layers * (4 * hidden**2 + 3 * hidden + 3 * hidden * ffn + 2 * hidden) + hidden
    assert parameters == by_hand


@pytest.mark.parametrize(("name", "nominal"), [("qwen-104m", 104e6), ("qwen-200m", 200e6), ("qwen-1.2b", 1.2e9)])
def test_parameter_count_is_near_the_published_name(name: str, nominal: float) -> None:
    assert PUBLISHED[name][-1] == pytest.approx(nominal, rel=0.04)


@pytest.mark.parametrize(("name", "nominal"), [("qwen-300m", 300e6), ("qwen-500m", 500e6)])
def test_published_names_that_round_up_are_above_their_count(name: str, nominal: float) -> None:
    assert 0.8 * nominal < PUBLISHED[name][-1] < nominal


def test_llama_preset_is_llama_3_1_in_small() -> None:
    model = build_empty_model("llama-3.1-212m", 128_256)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (
        768,
        12,
        12,
        12,
    )
    assert config.rope_parameters == {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert config.max_position_embeddings == 131_072
    assert model.model.layers[0].self_attn.q_proj.bias is None
    # By hand: tied embedding, attention, feed-forward, norms.
    assert count_parameters(model) == 128_256 * 768 + 12 * (4 * 768**2 + 3 * 768 * 3072 + 2 * 768) + 768 == 211_766_016
    assert count_parameters(model) == pytest.approx(212e6, rel=0.002)


def test_mamba_preset_is_the_published_130_million() -> None:
    model = build_empty_model("mamba-130m", 50_280)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.state_size, config.expand, config.conv_kernel) == (
        768,
        24,
        16,
        2,
        4,
    )
    assert (config.intermediate_size, config.time_step_rank, config.tie_word_embeddings) == (1536, 48, True)
    inner = 1536
    # Input and output projection, convolution with bias, x and dt projections, A, D, norm.
    layer = 768 * 2 * inner + inner * 768 + inner * (4 + 1) + inner * (48 + 2 * 16) + (48 + 1) * inner + inner * 16 + inner + 768
    assert count_parameters(model) == 50_280 * 768 + 24 * layer + 768 == 129_135_360
    assert count_parameters(model) == pytest.approx(130e6, rel=0.01)


def test_weights_of_a_mamba_stay_as_they_are_when_it_is_loaded(tmp_path: Path) -> None:
    # transformers rescales stored weights again where a config asks for rescaled fresh ones.
    content = describe_architecture("mamba-130m") | {"hidden_size": 32, "num_hidden_layers": 4, "time_step_rank": 2}
    assert content["rescale_prenorm_residual"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = build_model(str(tmp_path), 64, 16, seed=0)
    # U(-b, b) with b = 1 / sqrt(expand * 32), over the root of the number of layers
    assert model.backbone.layers[0].mixer.out_proj.weight.std().item() == pytest.approx(1 / 8 / 3**0.5 / 2, rel=0.05)
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for (name, parameter), stored in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, stored), name


def test_a_mamba_has_no_longest_input() -> None:
    assert not hasattr(build_empty_model("mamba-130m", 64).config, "max_position_embeddings")


def test_every_preset_is_described() -> None:
    assert set(PRESETS) == {*PUBLISHED, "qwen-tiny", "llama-3.1-212m", "mamba-130m"}
    assert all(preset.description for preset in PRESETS.values())


def test_a_preset_cannot_be_changed_by_who_reads_it() -> None:
    describe_architecture("llama-3.1-212m")["rope_parameters"]["factor"] = 1.0
    assert describe_architecture("llama-3.1-212m")["rope_parameters"]["factor"] == 8.0


def test_same_seed_gives_the_same_weights_whatever_the_global_random_state() -> None:
    torch.manual_seed(1)
    first = build_model("qwen-tiny", 128, 16, seed=7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = build_model("qwen-tiny", 128, 16, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    other = build_model("qwen-tiny", 128, 16, seed=8)
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b), name
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_model_is_built_from_a_folder_with_its_sizes_and_without_dropout(tmp_path: Path) -> None:
    GPT2Config(vocab_size=50_257, n_embd=32, n_layer=2, n_head=4, n_positions=8, attn_pdrop=0.1, resid_pdrop=0.2).save_pretrained(
        tmp_path
    )
    model = build_model(str(tmp_path), 192, 33, seed=0)
    assert model.transformer.wte.weight.shape == (192, 32)
    assert model.transformer.wpe.weight.shape[0] == 33
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p] == []
    assert model.config.eos_token_id is None
    assert model.training


def test_padding_id_of_another_tokenizer_does_not_freeze_an_embedding(tmp_path: Path) -> None:
    LlamaConfig(
        vocab_size=900, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=850
    ).save_pretrained(tmp_path)
    model = build_model(str(tmp_path), 64, 16, seed=0)
    assert model.model.embed_tokens.padding_idx is None


def test_description_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=900, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    for name in ("a", "b"):
        config.save_pretrained(tmp_path / name)
    other = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps({**other, "_name_or_path": "x", "transformers_version": "9"}))
    assert describe_architecture(str(tmp_path / "a")) == describe_architecture(str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("given", "tokenizer", "wanted"), [(None, 49_152, 49_152), (None, 100, 128), (None, 1, 64), (151_936, 151_646, 151_936)]
)
def test_vocab_size_has_room_for_the_tokenizer(given: int | None, tokenizer: int, wanted: int) -> None:
    assert resolve_vocab_size(given, tokenizer) == wanted


def test_vocab_size_smaller_than_the_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size is 99, but the tokenizer has 100 ids"):
        resolve_vocab_size(99, 100)


def test_unknown_architecture_names_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"no architecture 'qwen-7b'.*qwen-104m, qwen-200m"):
        build_model("qwen-7b", 64, 16, seed=0)


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a folder without a config\.json"):
        build_model(str(tmp_path), 64, 16, seed=0)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "not valid JSON"), ("[]", "holds no JSON object"), ("{}", "names no model_type")]
)
def test_damaged_config_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        describe_architecture(str(tmp_path))


def test_architecture_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ConfigError, match="cannot be built as a causal language model"):
        build_model(str(tmp_path), 64, 16, seed=0)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("llama", {"is_causal": False}, r"asks for attention to later tokens \(is_causal: false\)"),
        (
            "gemma3_text",
            {"use_bidirectional_attention": True},
            r"asks for attention to later tokens \(use_bidirectional_attention: True\)",
        ),
        ("bert-generation", {"is_decoder": False}, r"a model of type bert-generation is an encoder, in which each token sees"),
    ],
)
def test_a_student_that_would_see_what_it_is_to_predict_is_refused(
    tmp_path: Path, family: str, changes: dict[str, bool], reason: str
) -> None:
    make_config(family, **changes).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        build_model(str(tmp_path), 100, 64, seed=0)
