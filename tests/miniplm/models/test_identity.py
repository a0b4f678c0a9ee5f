"""The name and the number of parameters of a model follow what is loaded, and nothing that lies beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MixtralConfig, PreTrainedModel

from miniplm.errors import ModelError
from miniplm.models.identity import identify_model
from miniplm.models.loading import load_model
from miniplm.models.opening import model_files
from miniplm.storage.root import Storage
from tests.miniplm.made_models import make_gpt2, make_llama, make_qwen2, save_model
from tests.miniplm.made_zoo import REFUSED, ZOO, make_family

CPU = torch.device("cpu")


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def logits(folder: Path) -> Tensor:
    loaded = load_model(folder, "float32", CPU)
    with torch.no_grad():
        hidden = loaded.body(input_ids=torch.arange(1, 20)[None], use_cache=False).last_hidden_state[0]
        result: Tensor = loaded.head.logits(hidden)
    return result


def test_ids_of_models_that_were_right_are_as_before(tmp_path: Path) -> None:
    # Of the version before parameters were counted by the model: a digest of config.json and of model.safetensors.
    folder = tmp_path / "llama"
    folder.mkdir()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 10, **sizes}))
    layer = {f"self_attn.{name}_proj": (8, 8) for name in "qkvo"} | {f"mlp.{name}_proj": (8, 8) for name in ("gate", "up", "down")}
    layer |= {"input_layernorm": (8,), "post_attention_layernorm": (8,)}
    shapes = {f"layers.0.{name}": shape for name, shape in layer.items()} | {"embed_tokens": (10, 8), "norm": (8,)}
    tensors = {f"model.{name}.weight": torch.ones(shape) for name, shape in shapes.items()} | {"lm_head.weight": torch.ones(10, 8)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert identify_model(folder, "x", "float32").model_id == "llama-1m-float32-134cc46e0524"


def test_other_weights_beside_stale_shards_give_another_id(tmp_path: Path) -> None:
    folder = save_model(make_llama(seed=1), tmp_path / "llama")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": "gone.safetensors"}}))
    first = identify_model(folder, "llama", "float32")
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].mul_(2))
    assert identify_model(folder, "llama", "float32").model_id != first.model_id
    save_file({"x": torch.zeros(9)}, folder / "consolidated.safetensors")
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].div_(2))
    assert identify_model(folder, "llama", "float32") == first


def test_a_given_model_is_not_opened_under_the_name_of_other_weights(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "data"))
    folder = save_model(make_llama(seed=1), tmp_path / "llama")
    entry = identify_model(folder, str(folder), "bfloat16", storage=storage).model_copy(update={"dtype": "float32"})
    with model_files(storage, entry) as found:
        assert found == folder
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].mul_(2))
    with pytest.raises(ModelError, match=f"the weights in .* are not those of {entry.model_id}"), model_files(storage, entry):
        pass


def test_a_given_model_is_not_opened_under_the_name_of_other_settings(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "data"))
    folder = save_model(make_llama(seed=1), tmp_path / "llama")
    entry = identify_model(folder, str(folder), "float32", attention="document", storage=storage)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"transformers_version": "9"}))
    with model_files(storage, entry):
        pass
    path.write_text(json.dumps(content | {"rms_norm_eps": 0.1}))
    said = f"the settings of config.json in .* are not those of {entry.model_id}"
    with pytest.raises(ModelError, match=said), model_files(storage, entry):
        pass


def test_code_of_a_model_is_part_of_its_id_where_it_runs(tmp_path: Path) -> None:
    folder = save_model(make_llama(), tmp_path / "llama")
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    pass\n"
    )
    plain = identify_model(folder, "llama", "float32", trust_remote_code=True)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}))
    ids = [identify_model(folder, "llama", "float32", trust_remote_code=trust).model_id for trust in (False, True)]
    with open(folder / "modeling_own.py", "a") as file:
        file.write("\n# edited\n")
    ids += [identify_model(folder, "llama", "float32", trust_remote_code=trust).model_id for trust in (False, True)]
    assert ids[0] == ids[2]
    assert len({plain.model_id, *ids}) == 4


def store_masks(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("transformer.")]:
        tensors[name.removeprefix("transformer.")] = tensors.pop(name)
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, 128, 128))
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-torch.inf)


def store_head(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def store_rotary(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.full((4,), torch.nan)


def store_foreign(tensors: dict[str, Tensor]) -> None:
    tensors["vision_tower.weight"] = torch.full((40,), torch.inf)
    tensors["scales"] = torch.zeros(7, dtype=torch.int8)


@pytest.mark.parametrize(
    ("make", "edit"), [(make_gpt2, store_masks), (make_qwen2, store_head), (make_llama, store_rotary), (make_llama, store_foreign)]
)
def test_what_is_no_parameter_is_neither_counted_nor_checked(tmp_path: Path, make: Any, edit: Callable[..., None]) -> None:
    model = make()
    folder = save_model(model, tmp_path / "model")
    entry, before = identify_model(folder, "x", "float32"), logits(folder)
    edit_weights(folder, edit)
    edited = identify_model(folder, "x", "float32")
    assert edited.num_parameters == entry.num_parameters == count(model)
    torch.testing.assert_close(logits(folder), before)


def test_a_head_that_differs_from_the_embedding_it_is_to_be_tied_to_counts(tmp_path: Path) -> None:
    folder = save_model(make_qwen2(), tmp_path / "model")
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}))
    entry = identify_model(folder, "x", "float32")
    assert entry.num_parameters == count(AutoModelForCausalLM.from_pretrained(folder)) == count(make_qwen2()) + 100 * 32


def test_masked_bias_of_an_old_gpt_neox_is_no_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(GPTNeoXConfig(vocab_size=100, max_position_embeddings=64, **sizes))
    folder = save_model(model, tmp_path / "neox")
    before = logits(folder)

    def store(tensors: dict[str, Tensor]) -> None:
        for layer in range(2):
            tensors[f"gpt_neox.layers.{layer}.attention.masked_bias"] = torch.tensor(-torch.inf)
            tensors[f"gpt_neox.layers.{layer}.attention.bias"] = torch.tril(torch.ones(1, 1, 64, 64)).bool()
            tensors[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(4)

    edit_weights(folder, store)
    assert identify_model(folder, "x", "float32").num_parameters == count(model)
    torch.testing.assert_close(logits(folder), before)


@pytest.mark.parametrize("family", sorted(set(ZOO) - set(REFUSED)))
def test_each_family_has_as_many_parameters_as_its_model(tmp_path: Path, family: str) -> None:
    model = make_family(family)
    assert identify_model(save_model(model, tmp_path / family), family, "float32").num_parameters == count(model)


def test_experts_are_counted_each(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(MixtralConfig(vocab_size=100, num_local_experts=4, **sizes))
    folder = save_model(model, tmp_path / "moe")
    assert identify_model(folder, "moe", "float32").num_parameters == count(model)
    expert = next(name for name in load_file(folder / "model.safetensors") if "experts" in name)
    edit_weights(folder, lambda tensors: tensors[expert].view(-1)[:2].fill_(torch.nan))
    with pytest.raises(ModelError, match=rf"NaN or infinite: {expert} \(2 values\)"):
        load_model(folder, "float32", CPU)


FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", [*FLOAT8, torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_any_floating_type_are_taken_at_their_value(tmp_path: Path, dtype: torch.dtype) -> None:
    def narrow(name: str, value: Tensor) -> Tensor:
        return value.to(dtype) if name.endswith("_proj.weight") else value  # mixed, as checkpoints are

    folders = [save_model(make_llama(), tmp_path / name) for name in ("stored", "plain")]
    edit_weights(folders[0], lambda tensors: tensors.update({name: narrow(name, value) for name, value in tensors.items()}))
    edit_weights(folders[1], lambda tensors: tensors.update({name: narrow(name, value).float() for name, value in tensors.items()}))
    assert torch.equal(logits(folders[0]), logits(folders[1]))


def test_a_float8_weight_that_is_nan_is_refused(tmp_path: Path) -> None:
    folder = save_model(make_llama(), tmp_path / "model")
    name = "model.layers.0.mlp.up_proj.weight"

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name][0, :3] = torch.nan
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    edit_weights(folder, spoil)
    with pytest.raises(ModelError, match=r"NaN or infinite: model\.layers\.0\.mlp\.up_proj\.weight \(3 values\)"):
        load_model(folder, "float32", CPU)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e8m0fnu, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_model(make_llama(), tmp_path / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(ModelError, match=r"something else than floating point numbers: model\.layers\.1\.mlp\.up_proj\.weight \("):
        identify_model(folder, "x", "float32")


@pytest.mark.parametrize(
    "name", ["weight_scale_inv", "weight_scale", "input_scale", "weight.absmax", "SCB", "weight.quant_state.nf4"]
)
def test_scales_of_weights_without_a_quantisation_in_the_config_are_refused(tmp_path: Path, name: str) -> None:
    folder = save_model(make_llama(), tmp_path / "model")
    module = "model.layers.0.mlp.up_proj"
    edit_weights(folder, lambda tensors: tensors.update({f"{module}.{name}": torch.ones(1, 1)}))
    with pytest.raises(ModelError, match=rf"what is to be done to them: {module}\.{name}\."):
        identify_model(folder, "x", "float32")


def test_packed_weights_without_a_quantisation_in_the_config_are_refused(tmp_path: Path) -> None:
    folder = save_model(make_llama(), tmp_path / "model")

    def pack(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            rows, columns = tensors.pop(name).shape
            base = name.removesuffix(".weight")
            tensors[f"{base}.qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
            tensors[f"{base}.scales"] = torch.ones(1, rows)

    edit_weights(folder, pack)
    with pytest.raises(ModelError, match=r"lacks weights: .*weights without a place in the model: .*qweight"):
        load_model(folder, "float32", CPU)
