"""The fidelity gate on the command line, on tiny models."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from tests.command_line import run_miniplm
from tests.tiny_runs import make_teacher


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, finished_run):
    """A corpus and a trained reference, nothing scored."""
    folder = tmp_path_factory.mktemp("run")
    for part in ("data", "teacher", "sources"):
        shutil.copytree(
            finished_run.config.parent / part, folder / part, ignore=shutil.ignore_patterns("scores", "selections", "runs")
        )
    content = yaml.safe_load(finished_run.config.read_text()) | {"storage": str(folder / "data"), "students": []}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    return config


def test_calibration_prints_what_the_dtypes_change_and_keeps_it(prepared, prefect_server):
    low = ("--set", "teacher.dtype=bfloat16", "--set", "reference.dtype=bfloat16", "--set", "scoring.min_overlap=0.5")
    result = run_miniplm("score", str(prepared), "--calibrate", "24", *low, "--json", prefect=prefect_server)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["num_sequences"], facts["passes"], facts["teacher"]["dtype"]) == (24, True, "bfloat16")
    assert 0.9 < facts["spearman"] <= 1
    assert facts["overlap"] >= 0.5
    (kept,) = (prepared.parent / "data" / "scores" / facts["corpus_id"] / "calibrations").glob("*.json")
    assert json.loads(kept.read_text())["teacher"]["model_id"] == facts["teacher"]["model_id"]


def test_fp8_is_measured_without_a_gpu_but_does_not_score_there(prepared, prefect_server):
    fp8 = ("--set", "teacher.dtype=fp8", "--set", "scoring.min_overlap=1.0")
    measured = run_miniplm("score", str(prepared), "--calibrate", "24", *fp8, prefect=prefect_server)
    assert measured.returncode in (0, 2), measured.stderr
    assert "fp8" in measured.stdout
    assert ("REFUSED" in measured.stdout) == (measured.returncode == 2)
    for command in (("run", str(prepared)), ("score", str(prepared), "--model", "teacher")):
        refused = run_miniplm(*command, *fp8, prefect=prefect_server)
        assert refused.returncode == 2
        assert "fp8 needs a GPU of compute capability 8.9" in refused.stderr


def test_score_takes_a_model_or_a_calibration(prepared, prefect_server):
    for arguments in ((), ("--model", "teacher", "--calibrate", "24")):
        result = run_miniplm("score", str(prepared), *arguments, prefect=prefect_server)
        assert result.returncode == 2
        assert "give either --model teacher or --model reference (score its shards), or --calibrate N" in result.stderr


def test_what_was_compiled_is_kept_next_to_the_models(prepared, prefect_server, tmp_path):
    shutil.copytree(prepared.parent / "teacher", tmp_path / "teacher")
    vocab_size = json.loads((tmp_path / "teacher" / "config.json").read_text())["vocab_size"]
    teacher = make_teacher(tmp_path / "teacher", vocab_size, num_layers=1)  # the compiler takes seconds a layer
    arguments = ("score", str(prepared), "--model", "teacher", "--shard", "0", "--set", "scoring.compile=true", "--json")
    result = run_miniplm(*arguments, "--set", f"teacher.model={teacher}", prefect=prefect_server)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    data = prepared.parent / "data"
    assert list((data / "models" / "compile-cache").rglob("*.so"))
    manifest = json.loads((data / "scores" / facts["corpus_id"] / facts["model"]["model_id"] / "shard-00000.json").read_text())
    assert manifest["engine"]["compiled"] is True
    assert manifest["tokens_per_second"] > 0
    assert 0 < manifest["matmul_peak_share"] < 1
    assert 0 <= manifest["device_wait_share"] < 1
