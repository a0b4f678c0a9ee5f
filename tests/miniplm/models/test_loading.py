import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from miniplm.errors import ConfigError, ModelError, NoDeviceError, is_lasting
from miniplm.models import devices
from miniplm.models.devices import has_native_bfloat16, is_out_of_memory, resolve_device, resolve_dtype
from miniplm.models.dtypes import LEAST_WIDTH_OF_BFLOAT16, choose_scoring_dtype, find_hidden_width
from miniplm.models.files import list_weight_files
from miniplm.models.identity import SCORING_VERSION, identify_model, name_model, slug
from miniplm.models.loading import load_model, split_head
from miniplm.models.locations import locate_model
from miniplm.storage.root import digest_content
from tests.miniplm.made_models import make_gpt2, make_llama, make_qwen2, save_model
from tests.miniplm.made_zoo import make_config

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    return save_model(make_llama(), tmp_path / "llama")


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_id_follows_content_and_not_place(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere" / "llama")
    entry = identify_model(folder, "llama", "float32")
    assert identify_model(tmp_path / "elsewhere" / "llama", "llama", "float32") == entry
    assert entry.num_parameters == sum(p.numel() for p in make_llama().parameters())
    assert entry.model_id.startswith("llama-1m-float32-")


def test_id_changes_with_weights_config_and_dtype(folder):
    ids = {identify_model(folder, "llama", "float32").model_id, identify_model(folder, "llama", "bfloat16").model_id}
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].mul_(2))
    ids.add(identify_model(folder, "llama", "float32").model_id)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    ids.add(identify_model(folder, "llama", "float32").model_id)
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ({"model_type": "llama"}, False),
        ({"model_type": "llama", "rope_scaling": None}, False),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, False),
        ({"model_type": "mistral", "sliding_window": 4096}, False),
        ({"model_type": "qwen2_moe", "sliding_window": None}, False),
        ({"model_type": "qwen2_moe", "sliding_window": 4096}, True),
        ({"model_type": "phimoe", "sliding_window": 2047}, True),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, True),
        ({"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, True),
        ({"model_type": "deepseek_v32", "index_topk": 2048}, True),
    ],
)
def test_only_models_that_were_misread_have_another_id(config, changes):
    content = ["sha256:0", config, "float32", SCORING_VERSION]
    assert (name_model(1, "sha256:0", config, "float32").rsplit("-", 1)[1] != digest_content(content)) is changes


def test_slug():
    assert slug("HuggingFaceTB/SmolLM2-135M") == "smollm2-135m"
    assert slug("models/my model/") == "my-model"


@pytest.mark.parametrize("make", [make_llama, make_qwen2, make_gpt2])
def test_body_and_head_give_the_models_own_logits(make):
    model = make()
    body, head = split_head(model)
    token_ids = torch.arange(20)[None, :]
    with torch.no_grad():
        ours = head.logits(body(input_ids=token_ids, use_cache=False).last_hidden_state[0])
        torch.testing.assert_close(ours, model(input_ids=token_ids).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_stored_weights_are_not_rescaled_when_they_are_loaded(tmp_path, family):
    config = make_config(family, rescale_prenorm_residual=True)
    model = AutoModelForCausalLM.from_config(config).eval()
    loaded = load_model(save_model(model, tmp_path / family), "float32", CPU, will_compile=True)  # so that nothing is packed
    for (name, stored), parameter in zip(model.base_model.named_parameters(), loaded.body.parameters(), strict=True):
        assert torch.equal(parameter, stored), name


def test_missing_folder_says_where_it_looked(tmp_path):
    with pytest.raises(
        ModelError, match=r"there is no model folder '.*nothing' \(looked from .*\); give a folder, a URL .*, or a hub id"
    ):
        locate_model(str(tmp_path / "nothing"))


def test_folder_without_config(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(tmp_path / "m", "float32", CPU)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match="truncated or damaged"):
        list_weight_files(folder)


def test_weights_cut_in_the_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelError, match="truncated"):
        load_model(folder, "float32", CPU)


def test_pickle_only_is_refused_with_how_to_convert(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickle only \(pytorch_model\.bin\).*Convert it once"):
        list_weight_files(folder)


def test_nan_weights_are_refused(folder):
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"][:3].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"NaN or infinite: model\.norm\.weight \(3 values\)"):
        load_model(folder, "float32", CPU)


def test_missing_tensor_is_refused_rather_than_random(folder):
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks weights: model\.layers\.0\.mlp\.up_proj\.weight"):
        load_model(folder, "float32", CPU)


def test_shard_that_the_index_names_is_missing(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(ModelError, match="lacks weight files that its index names"):
        list_weight_files(folder)


def test_unknown_family_is_an_error_not_remote_code(folder):
    (folder / "config.json").write_text(
        json.dumps({"model_type": "nobody-knows", "auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    )
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_model(folder, "float32", CPU)


def test_a_family_with_a_step_between_body_and_logits_is_refused(folder, monkeypatch):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def doubled(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", doubled)
    with pytest.raises(ModelError, match="makes its logits in a way that is not known here"):
        load_model(folder, "float32", CPU)


def test_devices_and_dtypes():
    assert resolve_dtype("auto", CPU) == "float32"
    assert resolve_dtype("bfloat16", CPU) == "bfloat16"
    assert resolve_dtype("auto", torch.device("cuda")) == "bfloat16"
    assert choose_scoring_dtype("cuda", False, 0) == "bfloat16"
    if not torch.cuda.is_available():
        with pytest.raises(NoDeviceError, match="this machine has 0 CUDA devices") as caught:
            resolve_device("cuda:3")
        assert not is_lasting(caught.value), "another worker may have it"


@pytest.mark.parametrize(
    ("cpuinfo", "scored_in"),
    [
        ("flags\t\t: fpu avx512f amx_tile amx_bf16 avx512_bf16\n", "bfloat16"),  # Sapphire Rapids and later
        (
            "flags\t\t: fpu avx512f avx512_bf16 avx512_vnni\nflags\t\t: fpu avx512_bf16\n",
            "bfloat16",
        ),  # Cooper Lake, Zen 4 and later
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", "bfloat16"),  # Neoverse V1 and later
        ("flags\t\t: fpu avx2 fma avx512f avx512_vnni\n", "float32"),
        ("flags\t\t: fpu avx512f amx_tile amx_int8\n", "float32"),
        ("Features\t: fp asimd bf16\n\nFeatures\t: fp asimd\n", "float32"),  # not all of its cores
        ("vendor_id\t: bf16\n", "float32"),
        (None, "float32"),
    ],
)
def test_auto_scores_in_bfloat16_where_the_cpu_multiplies_in_it_and_trains_in_float32(tmp_path, monkeypatch, cpuinfo, scored_in):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(devices, "read_cpu_flags", partial(devices.read_cpu_flags, path))
    assert has_native_bfloat16() is (scored_in == "bfloat16")
    assert choose_scoring_dtype("cpu", has_native_bfloat16(), LEAST_WIDTH_OF_BFLOAT16) == scored_in
    assert choose_scoring_dtype("cpu", has_native_bfloat16(), LEAST_WIDTH_OF_BFLOAT16 - 1) == "float32", "no faster there"
    assert resolve_dtype("auto", CPU) == "float32"
    with pytest.raises(ConfigError, match="dtype fp8 needs a GPU"):
        resolve_dtype("fp8", CPU)


@pytest.mark.parametrize(
    ("content", "width"),
    [
        ({"hidden_size": 576, "n_embd": 4}, 576),
        ({"model_type": "gpt2", "n_embd": 768}, 768),
        ({"model_type": "t5", "d_model": 512}, 512),
        ({"text_config": {"hidden_size": 640}, "hidden_size": 9999}, 640),
        ({"text_config": None, "hidden_size": 64}, 64),
        ({"hidden_size": None}, 0),
        ({}, 0),
    ],
)
def test_the_hidden_width_is_read_off_the_configuration(content, width):
    assert find_hidden_width(content) == width


def test_out_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    )
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
