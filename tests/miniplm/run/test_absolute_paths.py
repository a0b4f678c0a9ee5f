"""A run's paths, made absolute for processes that work in another folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from miniplm.run.pinning import make_absolute
from miniplm.storage.root import Storage
from tests.miniplm.run.test_pinning import make_config


def test_folders_become_absolute_and_names_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tokenizer", "models/teacher"):
        (tmp_path / name).mkdir(parents=True)
    sources = ("corpus/**/*.jsonl", "/abs/*.jsonl", "s3://bucket/*.jsonl", "zip://*.jsonl::all.zip")
    config = make_absolute(make_config(storage="./data", teacher={"model": "models/teacher"}, sources=sources))
    assert config.storage == f"{tmp_path}/data"
    assert [source.path for source in config.corpus.sources] == [f"{tmp_path}/corpus/**/*.jsonl", *sources[1:]]
    assert (config.corpus.tokenizer, config.teacher.model) == (f"{tmp_path}/tokenizer", f"{tmp_path}/models/teacher")
    # A preset, and a model on a hub.
    assert config.students[0].architecture == config.reference.architecture == "qwen-tiny"
    assert make_absolute(make_config(teacher={"model": "org/teacher"})).teacher.model == "org/teacher"
    assert make_absolute(config) == config


def test_a_given_reference_and_folders_of_architectures_become_absolute_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert make_absolute(make_config(reference={"model": "small"})).reference.model == f"{tmp_path}/small"
    config = make_absolute(make_config(architecture="small"))
    assert [config.reference.architecture, *(student.architecture for student in config.students)] == [f"{tmp_path}/small"] * 3


def test_a_students_own_tokenizer_becomes_absolute_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    config = make_config()
    students = (
        config.students[0].model_copy(update={"tokenizer": "own"}),
        config.students[1].model_copy(update={"tokenizer": "org/own"}),
    )
    made = make_absolute(config.model_copy(update={"students": students}))
    assert [student.tokenizer for student in made.students] == [f"{tmp_path}/own", "org/own"]


def test_a_preset_is_meant_where_a_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen-tiny").mkdir()
    config = make_absolute(make_config())
    assert config.students[0].architecture == config.reference.architecture == "qwen-tiny"


@pytest.mark.parametrize("storage", ["s3://bucket/data", "gs://bucket/data", "memory://data", "file:///data"])
def test_a_storage_url_stays(storage: str) -> None:
    assert make_absolute(make_config(storage=storage)).storage == storage


def test_a_home_folder_is_that_of_the_user_who_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "teacher").mkdir()
    config = make_absolute(make_config(storage="~/data", teacher={"model": "~/teacher"}, sources=("~/corpus/*.jsonl",)))
    assert config.storage == os.path.join(tmp_path, "data") == Storage("~/data").root_path
    assert config.corpus.sources[0].path == f"{tmp_path}/corpus/*.jsonl"
    assert config.teacher.model == f"{tmp_path}/teacher"
