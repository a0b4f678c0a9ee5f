"""A config.json that cannot be used is refused with file and field; one that asks for a missing kernel is used without it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from miniplm.errors import ConfigError, ModelError
from miniplm.models.architectures import build_model, check_architecture
from miniplm.models.lengths import find_max_positions
from miniplm.models.loading import load_model
from miniplm.models.skeleton import check_forward, read_skeleton
from tests.miniplm.made_models import make_llama, save_model

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
QUANTISED = {
    "gptq, 4 bits": {"quant_method": "gptq", "bits": 4},
    "awq, 4 bits": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "mxfp4": {"quant_method": "mxfp4"},
    "nobody-knows": {"quant_method": "nobody-knows"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(make_llama(), tmp_path / "llama")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_architecture(folder: Path, **fields: Any) -> str:
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


@pytest.mark.parametrize("method", QUANTISED)
def test_a_quantised_model_is_refused_by_its_method(folder: Path, method: str) -> None:
    edit_config(folder, quantization_config=QUANTISED[method])
    with pytest.raises(ModelError, match=rf"is quantised \(quantization_config of config\.json: {method}\).*dequantise"):
        read_skeleton(folder)


def test_a_quantised_model_of_another_framework_is_refused(folder: Path) -> None:
    edit_config(folder, quantization={"group_size": 64, "bits": 4})  # as MLX
    with pytest.raises(ModelError, match=r"is quantised \(quantization of config\.json: of an unnamed method, 4 bits\)"):
        read_skeleton(folder)


def test_quantised_text_of_a_multimodal_model_is_refused(folder: Path) -> None:
    edit_config(folder, text_config={"quantization_config": {"quant_method": "awq"}})
    with pytest.raises(ModelError, match="is quantised"):
        read_skeleton(folder)


def test_no_quantisation_is_none(folder: Path) -> None:
    edit_config(folder, quantization_config=None)
    assert read_skeleton(folder).num_ids == 100


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "layers of another number": ({"model_type": "qwen3", "layer_types": ["full_attention"] * 28}, "layer_types"),
    "a word for a number": ({"model_type": "qwen3", "rms_norm_eps": "1e-6"}, "rms_norm_eps"),
    "a word for a size": ({"model_type": "qwen3", "num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
    "a fraction": ({"model_type": "qwen3", "num_hidden_layers": 2.0}, r"num_hidden_layers is 2\.0"),
    "no layer": ({"model_type": "llama", "num_hidden_layers": 0}, "num_hidden_layers is 0, which is no whole number from 1"),
    "layers below none": ({"model_type": "llama", "num_hidden_layers": -1}, "num_hidden_layers is -1"),
    "true": ({"model_type": "llama", "hidden_size": True}, "hidden_size is True"),
    "layers without end": ({"model_type": "llama", "num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "too wide": ({"model_type": "llama", "hidden_size": 10**8, "intermediate_size": 10**9}, "parameters; at most"),
    "no number": ({"model_type": "gpt2", "n_embd": 10**30}, "n_embd is 1000"),
    "heads that do not divide the width": ({"model_type": "llama", "num_attention_heads": 5, "head_dim": None}, r"config\.json"),
    "heads that keys do not divide": ({"model_type": "qwen2", "num_attention_heads": 5}, r"config\.json makes a model that cannot"),
    "a list for a size": ({"model_type": "llama", "hidden_size": [32]}, r"config\.json"),
    "a dict for a size": ({"model_type": "llama", "hidden_size": {}}, r"config\.json"),
    "unknown rope": ({"model_type": "llama", "rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "spiral"),
    "unknown activation": ({"model_type": "llama", "hidden_act": "swishy"}, "swishy"),
    "unknown family": ({"model_type": "nobody-knows"}, "nobody-knows"),
    "encoder": ({"model_type": "bert"}, "type bert is an encoder"),
    "encoder of an odd name": ({"model_type": "xlnet"}, "type xlnet is an encoder"),
    "encoder and decoder": ({"model_type": "t5"}, "type t5 is an encoder and a decoder"),
    "images": ({"model_type": "vit"}, "cannot be built as a causal language model"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_architecture_that_does_not_fit_itself_is_refused_before_anything_is_built(tmp_path: Path, kind: str) -> None:
    fields, message = UNUSABLE[kind]
    sizes = {} if fields["model_type"] in ("gpt2", "vit", "xlnet") else SMALL
    with pytest.raises(ConfigError, match=message) as caught:
        check_architecture(write_architecture(tmp_path, **(sizes | fields)), 128, 33)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"num_hidden_layers": 1.0}, r"num_hidden_layers is 1\.0"),
        ({"hidden_size": 64, "head_dim": None}, "another shape than its config.json says: "),
        ({"num_hidden_layers": 3}, r"lacks weights: model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"weights of layers that its config\.json does not count, .*: model\.layers\.1\."),
        ({"model_type": "bert"}, "type bert is an encoder"),
        ({"pad_token_id": 100_000}, "Padding_idx must be within"),
        ({"dtype": "garbage"}, "garbage"),
        ({"model_type": "gpt_neox"}, r"lacks weights: .*weights without a place in the model: "),
    ],
)
def test_a_model_whose_config_was_edited_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **({"model_type": "qwen3"} if "layer_types" in changes else {}), **changes)
    with pytest.raises(ModelError, match=message):
        read_skeleton(folder)


def test_layers_that_predict_further_tokens_are_left_out_where_the_config_counts_them(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1, num_nextn_predict_layers=1)
    assert len(read_skeleton(folder).model.model.layers) == 1


@pytest.mark.parametrize("changes", [{"rms_norm_eps": -1.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}])
def test_settings_that_make_logits_of_no_number_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match="gives logits that are NaN or infinite"):
        load_model(folder, "float32", CPU)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "mixtral", "phimoe", "mamba", "jetmoe"])
def test_an_architecture_that_computes_passes(tmp_path: Path, family: str) -> None:
    check_architecture(write_architecture(tmp_path, model_type=family, **SMALL), 128, 33)


def test_a_model_that_computes_passes(folder: Path) -> None:
    check_forward(read_skeleton(folder).model, folder / "config.json", ModelError)


ATTENTION = [
    "flash_attention_2",
    "flash_attention_3",
    "kernels-community/flash-attn2",
    "paged|sdpa",
    "flex_attention",
    "nobody-knows",
]


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_an_attention_that_is_not_everywhere_is_replaced_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str, attention: str
) -> None:
    folder = save_model(make_llama(), tmp_path / "llama")
    edit_config(folder, **{field: attention})
    caplog.set_level(logging.WARNING, "miniplm")
    assert load_model(folder, "float32", CPU).own_attention == "sdpa"
    assert build_model(str(folder), 128, 33, seed=0).config._attn_implementation == "sdpa"
    said = [record.getMessage() for record in caplog.records if record.name == "miniplm"]
    assert said == [
        f"{folder}/config.json asks for the attention {attention}, which not every machine has; PyTorch's own (sdpa, or eager where the "
        "family lacks it) is used instead"
    ]


def test_another_config_that_transformers_would_take_instead_is_refused(folder: Path) -> None:
    edit_config(folder, configuration_files=["config.99.0.0.json", "config.json"])
    read_skeleton(folder)
    edit_config(folder, configuration_files=["config.4.0.0.json", "config.json"])
    with pytest.raises(
        ModelError, match=r"takes? config\.4\.0\.0\.json instead.*Give the file that is meant the name config\.json"
    ):
        read_skeleton(folder)
    with pytest.raises(ConfigError, match=r"config\.4\.0\.0\.json instead"):
        check_architecture(str(folder), 128, 33)


def test_how_a_config_wants_results_given_does_not_matter(folder: Path) -> None:
    edit_config(folder, return_dict=False, output_hidden_states=True, output_attentions=True)
    assert load_model(folder, "float32", CPU).own_attention == "sdpa"
    assert build_model(str(folder), 128, 33, seed=0).config.return_dict


def test_code_of_another_repository_is_refused_where_it_would_run(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "owner/other--modeling_own.Own", "AutoConfig": "configuration_own.Own"})
    read_skeleton(folder)
    with pytest.raises(ModelError, match=r"takes code from elsewhere \(owner/other--modeling_own\.Own\)"):
        read_skeleton(folder, trust_remote_code=True)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_of_pytorch_is_kept(folder: Path, caplog: pytest.LogCaptureFixture, attention: str) -> None:
    edit_config(folder, _attn_implementation=attention)
    caplog.set_level(logging.WARNING, "miniplm")
    assert load_model(folder, "float32", CPU).own_attention == attention
    assert not [record for record in caplog.records if record.name == "miniplm"]


def test_positions_and_ids_of_a_multimodal_model_are_those_of_its_text() -> None:
    from transformers import Gemma3Config

    config = Gemma3Config(text_config=SMALL | {"max_position_embeddings": 77})
    assert find_max_positions(config) == 77
