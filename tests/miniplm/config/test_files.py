"""A configuration file that cannot be read or parsed is one message, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem

from miniplm.config.files import apply_override, check_config, check_section, load_config
from miniplm.config.run import EvaluationConfig, ScoringConfig, TrainingConfig
from miniplm.config.selection import SelectionConfig
from miniplm.errors import ConfigError


@pytest.mark.parametrize(
    "content",
    [b"a: [", b"a: 1\na: 2", b"? [1]\n: 2", b"day: 2026-99-99", b"\x89PNG\r\n\x1a\n", b"a: \xff", b"a: \x00", b"[" * 5000],
)
def test_what_yaml_cannot_read_is_named_with_its_file(tmp_path: Path, content: bytes):
    path = tmp_path / "a::b [1].yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a::b \[1\]\.yaml is not valid YAML"):
        load_config(str(path))
    if content.isascii() and b"\n" not in content:
        with pytest.raises(ConfigError, match=r"--set name=.*: the value is not valid YAML"):
            apply_override({}, f"name={content.decode()}")


def test_a_file_that_this_user_may_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "run.yaml").write_text("name: a")
    monkeypatch.setattr(LocalFileSystem, "_open", refuse)
    with pytest.raises(ConfigError, match=r"run\.yaml cannot be read: Permission denied; give this user the right"):
        load_config(str(tmp_path / "run.yaml"))


def test_a_folder_and_a_file_that_is_not_there_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="is a folder; give the YAML file"):
        load_config(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no config file"):
        load_config(str(tmp_path / "none.yaml"))


def test_a_list_with_one_faulty_item_is_not_called_empty():
    with pytest.raises(ConfigError, match=r"corpus\.sources\.0\.path: is empty") as raised:
        check_config({"corpus": {"sources": [{"path": ""}]}}, "run.yaml")
    assert "at least 1 item" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"corpus\.sources: .*at least 1 item"):
        check_config({"corpus": {"sources": []}}, "run.yaml")


def test_an_override_changes_its_field_alone_where_yaml_gives_one_section_to_many() -> None:
    content = yaml.safe_load("a: &t {steps: 6, deep: {x: 1}}\nb: *t\nc: [*t, *t]\nd: {<<: *t}\n")
    apply_override(content, "c.0.steps=7")
    apply_override(content, "d.deep.x=2")
    other = {"steps": 6, "deep": {"x": 1}}
    assert content == {"a": other, "b": other, "c": [other | {"steps": 7}, other], "d": other | {"deep": {"x": 2}}}


def test_yes_and_no_are_no_numbers() -> None:
    for section, name in (
        (SelectionConfig, "ratio"),
        (SelectionConfig, "seed"),
        (TrainingConfig, "steps"),
        (EvaluationConfig, "task_limit"),
    ):
        with pytest.raises(ConfigError, match=f"{name} is true, and a number is wanted"):
            check_section(section, {name: True}, "it is wrong")
    assert EvaluationConfig.model_validate({"heldout": False}).heldout is False
    assert ScoringConfig.model_validate({"compile": True}).compile is True
