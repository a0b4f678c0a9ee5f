"""Which files a model is made of: those that transformers opens, and refused in plain words where they cannot be used."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, modeling_utils

from miniplm.errors import ModelError
from miniplm.models.files import list_weight_files, read_model_config
from miniplm.models.loading import load_model
from tests.miniplm.made_models import make_llama, save_model

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(make_llama(), tmp_path / "llama")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The weight files that transformers opens, in order."""
    paths: list[Path] = []

    def open_and_note(file: Any, *arguments: Any, **named: Any) -> Any:
        paths.append(Path(file))
        return safetensors.safe_open(file, *arguments, **named)

    monkeypatch.setattr(modeling_utils, "safe_open", open_and_note)
    return paths


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put_shards(
    folder: Path, names: tuple[str, str] = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
) -> None:
    tensors = load_file(folder / "model.safetensors")
    weight_map = {}
    for start, file in enumerate(names):
        part = {name: tensors[name] for name in sorted(tensors)[start::2]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def remove_shard(folder: Path) -> None:
    put_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def only_shards(folder: Path) -> None:
    put_shards(folder, ("b.safetensors", "a.safetensors"))
    (folder / "model.safetensors").unlink()


def put_foreign_files(folder: Path) -> None:
    foreign = {"x": torch.full((3,), torch.nan), "y": torch.zeros(4, dtype=torch.uint8)}
    for name in (
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "adapter_model.safetensors",
        "model-00001-of-00009.safetensors",
    ):
        save_file(foreign, folder / name)


def name_by_config(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    put_foreign_files(folder)
    edit_config(folder, transformers_weights="weights.safetensors")


@pytest.mark.parametrize("arrange", [lambda folder: None, put_shards, remove_shard, only_shards, put_foreign_files, name_by_config])
def test_the_files_listed_are_those_that_transformers_opens(
    folder: Path, opened: list[Path], arrange: Callable[[Path], None]
) -> None:
    arrange(folder)
    AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert opened
    assert list_weight_files(folder) == opened


def test_files_that_are_not_loaded_are_not_looked_at(folder: Path) -> None:
    put_foreign_files(folder)
    (folder / "model-00007-of-00009.safetensors").write_bytes(b"cut")
    assert load_model(folder, "float32", CPU).vocab_size == 100


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"has no \*\.safetensors weights"),
        (("consolidated.safetensors",), r"neither model\.safetensors nor .*it has consolidated\.safetensors\. Rename"),
        (("model.fp16.safetensors",), r"it has model\.fp16\.safetensors"),
        (("shard-00001-model-00001-of-00001.safetensors",), "holds a distributed checkpoint"),
    ],
)
def test_a_folder_without_the_names_that_are_loaded_is_refused(folder: Path, names: tuple[str, ...], message: str) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=message):
        load_model(folder, "float32", CPU)


def test_a_distributed_checkpoint_would_be_taken_before_whole_weights(folder: Path) -> None:
    (folder / "shard-00001-model-00001-of-00002.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="save_pretrained"):
        list_weight_files(folder)


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "other/model", "peft_type": "LORA"}))
    with pytest.raises(ModelError, match=r"has an adapter_config\.json.*merge_and_unload"):
        load_model(folder, "float32", CPU)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ('{"metadata": {}}', "it has no weight_map"),
        ('{"metadata": {}, "weight_map": {"a": 3}}', "it has no weight_map"),
        ('{"weight_map": {"a": "a.safetensors"}}', "has no metadata"),
    ],
)
def test_a_damaged_index_is_refused(folder: Path, index: str, message: str) -> None:
    only_shards(folder)
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=message):
        list_weight_files(folder)


def pack(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GARBLED = {
    "empty": (b"", "truncated"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", r"pointer of git-lfs.*git lfs pull"),
    "no JSON": (pack(b"\xff\xfe not json"), "truncated or no safetensors file"),
    "a list": (pack([1, 2]), "truncated or no safetensors file"),
    "unknown type": (pack({"a": {"dtype": "Q3", "shape": [1], "data_offsets": [0, 4]}}, b"0000"), "unknown variant"),
    "another shape": (pack({"a": {"dtype": "F32", "shape": [7], "data_offsets": [0, 4]}}, b"0000"), "safetensors file"),
    "overlap": (
        pack({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"0000"),
        "safetensors file",
    ),
    "offsets of words": (pack({"a": {"dtype": "F32", "shape": [1], "data_offsets": "xy"}}, b"0000"), "safetensors file"),
}


@pytest.mark.parametrize("kind", GARBLED)
def test_garbled_weights_are_refused(folder: Path, kind: str) -> None:
    data, message = GARBLED[kind]
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=rf"model\.safetensors .*{message}"):
        list_weight_files(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"model_type": "ll\xe4ma"}', "can't decode"),
        (b'{"rms_norm_eps": NaN}', "it holds NaN"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of git-lfs"),
        (b"3", "holds no JSON object"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"config\.json .*{message}"):
        read_model_config(folder)


def test_infinity_is_a_setting_of_published_models(folder: Path) -> None:
    edit_config(folder, time_step_limit=[0.0, float("inf")])  # as Mamba 2
    assert read_model_config(folder)["time_step_limit"] == [0.0, float("inf")]


def test_a_file_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ModelError, match=r"config\.json .*Permission denied"):
        read_model_config(folder)


def test_the_hubs_cache_and_links_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    snapshot = save_model(make_llama(num_layers=1), tmp_path / "models--o--n/snapshots/abc")
    for folder in (tmp_path / "models--o--n", snapshot.parent):
        with pytest.raises(ModelError, match=f"has no config.json; give the folder of a model, such as {snapshot}$"):
            read_model_config(folder)
    for name, problem in (("model.safetensors", list_weight_files), ("config.json", read_model_config)):
        (snapshot / name).unlink()
        (snapshot / name).symlink_to("../../blobs/gone")
        with pytest.raises(ModelError, match=rf"has no {name} \(it is a link to \.\./\.\./blobs/gone, which does not exist"):
            problem(snapshot)
