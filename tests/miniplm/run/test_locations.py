"""Models, tokenizers and architectures at URLs: taken wherever a folder is, and named by what they are, not by where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from miniplm.config.files import check_config, load_config
from miniplm.config.run import RunConfig, config_as_dict
from miniplm.errors import ConfigError
from miniplm.run.plan import RunPlan
from miniplm.run.resolution import make_key, resolve
from miniplm.storage.root import Storage
from tests.tiny_runs import make_tiny_run


def place(config: RunConfig, location: str) -> RunConfig:
    content: dict[str, Any] = config_as_dict(config)
    content["corpus"]["tokenizer"] = content["teacher"]["model"] = location
    content["reference"] |= {"model": location, "architecture": None, "training": None}
    content["students"][0]["architecture"] = content["students"][1]["architecture"] = content["students"][1]["tokenizer"] = location
    return check_config(content, "a test")


def name_all(plan: RunPlan) -> list[str]:
    assert plan.tokenizer is not None
    assert plan.reference_entry is not None
    return [plan.require_teacher().model_id, plan.reference_entry.model_id, plan.tokenizer.entry.digest]


def test_a_plan_with_urls_has_the_ids_of_one_with_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hub"))
    config = load_config(str(make_tiny_run(tmp_path)))
    store = Storage("memory://locations/teacher")
    for file in (tmp_path / "teacher").iterdir():
        store.write_bytes(file.name, file.read_bytes())
    by_folder, by_url = (resolve(place(config, location)) for location in (str(tmp_path / "teacher"), store.root))
    assert by_url.require_teacher().source == store.root
    assert name_all(by_url) == name_all(by_folder)
    key = make_key(place(config, store.root))[0]
    store.write_bytes("config.json", store.read_bytes("config.json") + b"\n")
    assert make_key(place(config, store.root))[0] != key


@pytest.mark.parametrize("field", ["teacher.model", "corpus.tokenizer", "students.0.architecture", "students.0.tokenizer"])
def test_a_url_with_credentials_is_refused_where_models_are_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}.*holds credentials"):
        load_config(str(make_tiny_run(tmp_path)), [f"{field}=s3://key:secret@bucket/model"])
