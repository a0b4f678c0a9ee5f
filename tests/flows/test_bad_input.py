"""What is wrong with an input is said in one message, with exit code 2, and nothing is half-written."""

from __future__ import annotations

import gzip
import json
import os
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from miniplm.config.files import load_config
from miniplm.errors import ConfigError, MiniplmError
from miniplm.run.checks import check_inputs
from miniplm.storage.root import Storage
from tests.command_line import run_miniplm
from tests.tiny_runs import make_documents, make_tiny_run, make_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_tiny_run(folder)
    return folder


@pytest.fixture
def config(made, tmp_path):
    """A run of its own whose files may be spoilt; paths in the config point into `tmp_path`."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace(str(made), str(tmp_path)))
    return path


def refuse_run(config, *overrides, prefect):
    """What the command line says."""
    arguments = [part for override in overrides for part in ("--set", override)]
    result = run_miniplm("run", str(config), *arguments, prefect=prefect)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    check_nothing_is_left(config)
    return result.stderr


def check(config):
    check_inputs(config, Storage(config.storage))


def refuse(config, *overrides):
    """What a run says before it does anything: the command line prints that and ends with 2, as the tests of `refuse_run` show."""
    with pytest.raises((ConfigError, MiniplmError)) as refused:
        check(load_config(str(config), list(overrides)))
    check_nothing_is_left(config)
    return str(refused.value)


def check_nothing_is_left(config):
    data = config.parent / "data"
    left = [path for path in data.rglob("*") if path.is_file() and ".locks" not in path.parts] if data.exists() else []
    assert not [path for path in left if path.name not in ("source-digests.json", "machine.json", "plan.json")], left


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selection.ratio=0", "selection.ratio: Input should be greater than 0 (got 0)"),
        ("selection.ratio=1.5", "selection.ratio: Input should be less than or equal to 1 (got 1.5)"),
        ("selection.ratio=.nan", "selection.ratio: Input should be a finite number (got nan)"),
        ("selection.ratoi=0.5", "selection.ratoi: Extra inputs are not permitted; no such field"),
        ("corpus.sources.0.domain=null", "give exactly one of `domain`"),
        ("corpus.sources.0.path=/nowhere/*.jsonl", "matches no file"),
        ("teacher.model=/nowhere/model", "there is no model folder '/nowhere/model'"),
        ("reference.architecture=qwen-9000b", "qwen-104m"),
        ("corpus.eos_token=<nope>", "eos_token '<nope>' is not in the vocabulary"),
        ("corpus.sequence_length=512", "has 256 positions, corpus.sequence_length is 512"),
        ("storage=s3://key:secret@bucket/x", "holds credentials"),
        ("storage=s3://key:sec/secret@bucket/x", "holds credentials"),
        ("corpus.sources.0.path=https://host/a.jsonl?X-Amz-Signature=secret", "holds credentials"),
        ("scoring.device=cuda:7", "CUDA devices"),
        ("students.1.name=miniplm", "the name 'miniplm' is given twice"),
    ],
)
def test_configuration(config, override, message):
    told = refuse(config, override)
    assert message in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selection.ratio=1.5", "selection.ratio: Input should be less than or equal to 1 (got 1.5)"),
        ("teacher.model=/nowhere/model", "there is no model folder '/nowhere/model'"),
        ("storage=s3://key:secret@bucket/x", "holds credentials"),
        ("execution.fan_out=work-pool", "has no deployment score-shards; make it with `prefect --no-prompt deploy"),
    ],
)
def test_configuration_on_the_command_line(config, prefect_server, override, message):
    stderr = refuse_run(config, override, prefect=prefect_server)
    assert message in stderr
    assert "secret" not in stderr


def test_config_file_that_is_missing_or_no_yaml(tmp_path, prefect_server):
    result = run_miniplm("run", str(tmp_path / "none.yaml"), prefect=prefect_server)
    assert (result.returncode, "there is no config file" in result.stderr) == (2, True)
    (tmp_path / "bad.yaml").write_text("name: [")
    result = run_miniplm("run", str(tmp_path / "bad.yaml"), prefect=prefect_server)
    assert (result.returncode, "is not valid YAML" in result.stderr) == (2, True)


def test_a_run_that_does_not_exist(tmp_path, prefect_server):
    result = run_miniplm("status", "nobody", "--storage", str(tmp_path), prefect=prefect_server)
    assert result.returncode == 2
    assert "has no run 'nobody'" in result.stderr


def test_truncated_gzip(config, prefect_server):
    source = config.parent / "sources" / "c.jsonl.gz"
    source.write_bytes(gzip.compress((config.parent / "sources" / "a.jsonl").read_bytes())[:-20])
    assert "c.jsonl.gz is truncated" in refuse_run(config, f"corpus.sources.0.path={source}", prefect=prefect_server)


def test_sources_without_a_usable_document(config, prefect_server):
    source = config.parent / "sources" / "c.jsonl"
    source.write_text('{"text": ""}\nnot json\n')
    stderr = refuse_run(config, f"corpus.sources.0.path={source}", prefect=prefect_server)
    assert "no usable document" in stderr


def test_teacher_with_another_tokenizer(config):
    other = config.parent / "other"
    shutil.copytree(config.parent / "teacher", other)
    make_tokenizer(other, make_documents(seed=9))
    assert "has another tokenizer than the corpus" in refuse(config, f"teacher.model={other}")


def test_teacher_with_a_smaller_vocabulary_than_the_tokenizer(config):
    path = config.parent / "teacher" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 300}))
    assert "has a vocabulary of 300 ids" in refuse(config)


def test_truncated_weights(config):
    path = config.parent / "teacher" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated or damaged" in refuse(config)


def test_pickle_only_weights(config):
    (config.parent / "teacher" / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, config.parent / "teacher" / "pytorch_model.bin")
    assert "Convert it once" in refuse(config)


def test_nan_weights(config):
    path = config.parent / "teacher" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    assert "NaN or infinite: model.norm.weight (1 values)" in refuse(config)


def test_tokenizer_without_eos(config):
    path = config.parent / "teacher" / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content.pop("eos_token")
    path.write_text(json.dumps(content))
    assert "has no EOS token" in refuse(config)


def test_storage_that_is_a_file(config):
    (config.parent / "file").write_text("")
    assert "cannot write" in refuse(config, f"storage={config.parent / 'file' / 'data'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_storage_without_the_right_to_write(config):
    folder = config.parent / "locked"
    folder.mkdir(mode=0o500)
    assert "cannot write" in refuse(config, f"storage={folder}/data")


def test_rejected_records_are_counted_and_kept_with_their_reason(config, prefect_server):
    documents = [json.dumps(document) for document in make_documents(60, seed=3)]
    bad = [
        '{"text": ',
        '{"meta": {"domain": "x"}}',
        '{"text": null, "meta": {"domain": "x"}}',
        '{"text": 7, "meta": {"domain": "x"}}',
        '{"text": "   ", "meta": {"domain": "x"}}',
        '{"text": "no domain"}',
    ]
    source = config.parent / "sources" / "mixed.jsonl"
    source.write_bytes("\n".join(documents + bad).encode() + b'\n{"text": "\xff\xfe", "meta": {"domain": "x"}}\n')
    result = run_miniplm("prepare", str(config), "--json", "--set", f"corpus.sources.0.path={source}", prefect=prefect_server)
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert manifest["rejected"] == {
        "malformed_json": 1, "missing_text": 1, "null_text": 1, "text_not_a_string": 1, "empty_document": 1, "missing_domain": 1, "invalid_utf8": 1,
    }  # fmt: skip
    rows = [
        json.loads(line)
        for path in (config.parent / "data" / "corpora" / manifest["corpus_id"] / "quarantine").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert [(row["line"], row["reason"]) for row in rows][:2] == [(61, "malformed_json"), (62, "missing_text")]
    assert {row["source"] for row in rows} == {str(source)}


def test_two_runs_of_one_config_at_the_same_time(config, prefect_server):
    from miniplm.layout import run_folder
    from miniplm.storage.locks import exclusive

    content = yaml.safe_load(config.read_text())
    with exclusive(Storage(content["storage"]), run_folder(content["name"]), "run tiny"):
        result = run_miniplm("run", str(config), prefect=prefect_server)
    assert result.returncode == 2
    assert f"another process (pid {os.getpid()}" in result.stderr
    assert "is working on run tiny" in result.stderr
