"""Whole runs of the real command line on tiny models, on a real (temporary) Prefect server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from flows.cli.runs import plan as show_plan
from tests.command_line import run_miniplm
from tests.ends import flip_byte
from tests.tiny_runs import make_documents, write_jsonl


@pytest.fixture(scope="module")
def finished(finished_run):
    """The configuration of a finished run, and what it printed. (What a new Prefect home needs besides, test_start.py shows.)"""
    return finished_run.config, finished_run


def read_record(config: Path) -> dict:
    return json.loads((config.parent / "data" / "runs" / "tiny" / "run.json").read_text())


def read_table(files) -> pd.DataFrame:
    return pd.concat([pq.read_table(file).to_pandas() for file in sorted(files)], ignore_index=True)


def test_ends_with_a_table_and_the_report(finished):
    config, result = finished
    report = config.parent / "data" / "runs" / "tiny" / "report.html"
    assert result.stdout.rstrip().endswith(f"report: {report}")
    assert "Held-out loss" in result.stdout
    assert report.is_file()
    assert "prefect" not in (result.stdout + result.stderr).lower()


def test_scores_agree_with_float64_from_the_stored_token_ids(finished):
    config, _ = finished
    data, record = config.parent / "data", read_record(config)
    sequences = read_table((data / "corpora" / record["corpus_id"] / "candidate").glob("*.parquet"))
    eos = json.loads((data / "corpora" / record["corpus_id"] / "manifest.json").read_text())["tokenizer"]["eos_token_id"]
    folders = {"teacher": config.parent / "teacher", "reference": data / "models" / record["reference"]["model_id"]}
    for role, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        scores = read_table((data / "scores" / record["corpus_id"] / record[role]["model_id"]).glob("*.parquet"))
        assert scores["sequence_id"].tolist() == sequences["sequence_id"].tolist()
        for row in range(0, len(sequences), 7):
            token_ids = torch.tensor(sequences["token_ids"][row].astype(np.int64))
            mask = token_ids[:-1] != eos
            with torch.no_grad():
                log_probs = model(input_ids=token_ids[None, :-1]).logits[0].log_softmax(-1)
            nll = -log_probs.gather(1, token_ids[1:, None])[:, 0][mask].sum().item()
            assert scores["num_scored_tokens"][row] == mask.sum()
            assert scores["nll_sum"][row] == pytest.approx(nll, abs=1e-4 * max(1, mask.sum().item()))


def test_selection_is_the_full_sort(finished):
    config, _ = finished
    data, record = config.parent / "data", read_record(config)
    frames = {
        role: read_table((data / "scores" / record["corpus_id"] / record[role]["model_id"]).glob("*.parquet")).set_index(
            "sequence_id"
        )
        for role in ("teacher", "reference")
    }
    mean = {role: frame["nll_sum"] / frame["num_scored_tokens"] for role, frame in frames.items()}
    ranked = (
        (mean["reference"] - mean["teacher"]).rename("r").reset_index().sort_values(["r", "sequence_id"], ascending=[False, True])
    )
    kept = sorted(ranked["sequence_id"].head(len(ranked) // 2))
    assert read_table((data / "selections" / record["selection_id"]).glob("*.parquet"))["sequence_id"].tolist() == kept


def test_counts_add_up(finished):
    config, _ = finished
    data, record = config.parent / "data", read_record(config)
    manifest = json.loads((data / "corpora" / record["corpus_id"] / "manifest.json").read_text())
    documents = sum(counts["num_documents"] for split in manifest["domains"].values() for counts in split.values())
    assert documents + sum(manifest["rejected"].values()) == manifest["num_records"] == 240
    ids = np.concatenate(
        [
            read_table((data / "corpora" / record["corpus_id"] / split).glob("*.parquet"))["sequence_id"]
            for split in ("candidate", "reference", "heldout")
        ]
    )
    assert sorted(ids) == list(range(len(ids)))


def test_students_are_plain_transformers_folders(finished):
    config, _ = finished
    for name in ("miniplm", "pretrain"):
        folder = config.parent / "data" / "runs" / "tiny" / "students" / name
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.model_type == "qwen2"
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6


def test_again_it_does_nothing_and_says_the_same(finished, prefect_server):
    config, first = finished
    before = {path: path.stat().st_mtime_ns for path in (config.parent / "data").rglob("*") if path.is_file()}
    again = run_miniplm("run", str(config), prefect=prefect_server)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split("Run tiny")[1] == first.stdout.split("Run tiny")[1]
    after = {path: path.stat().st_mtime_ns for path in (config.parent / "data").rglob("*") if path.is_file()}
    assert before == after


def test_status_inspect_and_select_by_name(finished, prefect_server):
    config, _ = finished
    storage = str(config.parent / "data")
    status = json.loads(run_miniplm("status", "tiny", "--storage", storage, "--json", prefect=prefect_server).stdout)
    assert status["complete"] is True
    only = json.loads(run_miniplm("status", "--storage", storage, "--json", prefect=prefect_server).stdout)
    assert only == status
    assert {stage["state"] for stage in status["stages"]} == {"done"}
    top = json.loads(run_miniplm("inspect", "tiny", "--storage", storage, "--limit", "3", "--json", prefect=prefect_server).stdout)
    assert [row["selected"] for row in top] == [True] * 3
    one = json.loads(
        run_miniplm(
            "inspect", "tiny", "--storage", storage, "--id", str(top[0]["sequence_id"]), "--json", prefect=prefect_server
        ).stdout
    )
    assert one == top[:1]


def test_another_ratio_scores_nothing(finished, prefect_server, tmp_path):
    config, _ = finished
    shutil.copytree(config.parent / "data", tmp_path / "data")
    scores = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "scores").rglob("*")}
    result = run_miniplm(
        *("run", str(config), "--set", f"storage={tmp_path / 'data'}", "--set", "selection.ratio=0.3", "--set", "students=[]"),
        prefect=prefect_server,
    )
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "scores").rglob("*")} == scores
    assert len(list((tmp_path / "data" / "selections").iterdir())) == 2


def test_damaged_and_missing_shards_are_told_and_only_they_are_scored_again(finished, prefect_server, tmp_path):
    config, _ = finished
    data = tmp_path / "data"
    shutil.copytree(config.parent / "data", data)
    record = read_record(config)
    scores = data / "scores" / record["corpus_id"] / record["teacher"]["model_id"]
    whole = {path.name: path.read_bytes() for path in scores.glob("*.parquet")}
    flip_byte(scores / "shard-00003.parquet", 60)
    (scores / "shard-00005.json").unlink()
    storage = f"storage={data}"
    refused = run_miniplm("select", str(config), "--set", storage, prefect=prefect_server)
    assert refused.returncode == 2
    assert "shard-00003 has broken teacher scores" in refused.stderr
    assert "miniplm score CONFIG --model teacher --shard 3 --shard 5" in refused.stderr
    status = json.loads(run_miniplm("status", str(config), "--set", storage, "--json", prefect=prefect_server).stdout)
    (stage,) = [stage for stage in status["stages"] if stage["name"] == "score teacher"]
    assert [(shard["shard_index"], shard["state"]) for shard in stage["shards"]] == [(3, "broken"), (5, "missing")]
    times = {path.name: path.stat().st_mtime_ns for path in scores.glob("*.parquet")}
    mended = run_miniplm(
        "score", str(config), "--model", "teacher", "--shard", "3", "--shard", "5", "--set", storage, prefect=prefect_server
    )
    assert mended.returncode == 0, mended.stderr
    assert {path.name: path.read_bytes() for path in scores.glob("*.parquet")} == whole
    changed = {path.name for path in scores.glob("*.parquet") if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"shard-00003.parquet", "shard-00005.parquet"}


def test_stages_one_by_one_are_the_whole_run(finished, prefect_server, tmp_path):
    config, _ = finished
    storage = ("--set", f"storage={tmp_path / 'data'}")
    early = run_miniplm("score", str(config), "--model", "teacher", *storage, prefect=prefect_server)
    assert early.returncode == 2
    assert "miniplm prepare" in early.stderr
    for arguments in (
        ("prepare",),
        ("score", "--model", "teacher"),
        ("train-reference",),
        ("score", "--model", "reference"),
        ("select",),
        ("train",),
        ("evaluate",),
    ):
        result = run_miniplm(arguments[0], str(config), *arguments[1:], *storage, prefect=prefect_server)
        assert result.returncode == 0, f"{arguments}: {result.stderr}"
    record = read_record(config)
    for kind in ("selections", "scores"):
        ours, theirs = tmp_path / "data" / kind, config.parent / "data" / kind
        files = sorted(path.relative_to(ours) for path in ours.rglob("*.parquet"))
        assert files
        assert all((ours / file).read_bytes() == (theirs / file).read_bytes() for file in files)
    assert (tmp_path / "data" / "selections" / record["selection_id"] / "manifest.json").is_file()
    # a run without a record of its own can still be looked at and reported
    top = run_miniplm("inspect", str(config), *storage, "--limit", "1", "--json", prefect=prefect_server)
    assert top.returncode == 0, top.stderr
    assert run_miniplm("report", str(config), *storage, prefect=prefect_server).returncode == 0
    assert (tmp_path / "data" / "runs" / "tiny" / "report.html").is_file()


def test_a_given_reference_is_used_as_it_is(finished, prefect_server, tmp_path):
    config, _ = finished
    record = read_record(config)
    content = yaml.safe_load(config.read_text())
    content["reference"] = {"model": str(config.parent / "data" / "models" / record["reference"]["model_id"]), "dtype": "float32"}
    content["students"] = []
    content["storage"] = str(tmp_path / "data")
    # What comes before the reference is there.
    shutil.copytree(config.parent / "data" / "corpora", tmp_path / "data" / "corpora")
    by_teacher = Path("data", "scores", record["corpus_id"], record["teacher"]["model_id"])
    shutil.copytree(config.parent / by_teacher, tmp_path / by_teacher)
    other = tmp_path / "given.yaml"
    other.write_text(yaml.safe_dump(content))
    result = run_miniplm("run", str(other), "--json", prefect=prefect_server)
    assert result.returncode == 0, result.stderr
    given = json.loads(result.stdout)
    ours = read_table((tmp_path / "data" / "selections" / given["selection_id"]).glob("*.parquet"))
    theirs = read_table((config.parent / "data" / "selections" / record["selection_id"]).glob("*.parquet"))
    pd.testing.assert_frame_equal(ours, theirs)


def test_plan_measures_and_writes_nothing(finished, tmp_path, monkeypatch, capsys):
    config, _ = finished
    monkeypatch.setattr("miniplm.run.cost._PROBE_SECONDS", 0.1)
    monkeypatch.setattr("flows.cli.options.start_quietly", lambda verbose: None)  # it sets up the whole process
    show_plan(str(config), overrides=[f"storage={tmp_path / 'data'}"], usd_per_gpu_hour=2, as_json=True)
    plan = json.loads(capsys.readouterr().out)
    tokens = sum(
        counts["num_tokens"]
        for split in json.loads(next((config.parent / "data" / "corpora").glob("*/manifest.json")).read_text())["domains"].values()
        for counts in split.values()
    )
    assert plan["num_corpus_tokens"] == tokens
    assert plan["usd"] == pytest.approx(2 * plan["hours"])
    assert [stage["name"] for stage in plan["stages"]] == [
        "prepare",
        "score teacher",
        "train reference",
        "score reference",
        "train miniplm",
        "train pretrain",
    ]
    assert not (tmp_path / "data" / "corpora").exists() or not list((tmp_path / "data" / "corpora").glob("*/*"))


def test_a_damaged_corpus_shard_stops_itself_and_not_its_neighbours(finished, prefect_server, tmp_path):
    config, _ = finished
    data = tmp_path / "data"
    shutil.copytree(config.parent / "data", data)
    record = read_record(config)
    scores = data / "scores" / record["corpus_id"] / record["teacher"]["model_id"]
    whole = {path.name: path.read_bytes() for path in scores.glob("*.parquet")}
    shutil.rmtree(scores)
    shard = data / "corpora" / record["corpus_id"] / "candidate" / "shard-00002.parquet"
    flip_byte(shard, 50)
    arguments = ("score", str(config), "--model", "teacher", "--set", f"storage={data}")
    failed = run_miniplm(*arguments, prefect=prefect_server)
    assert failed.returncode == 2
    assert f"1 of {len(whole)} shards could not be scored by the teacher: shard-00002: CorpusError" in failed.stderr
    assert {path.name: path.read_bytes() for path in scores.glob("*.parquet")} == {
        name: whole[name] for name in whole if name != "shard-00002.parquet"
    }
    # as the message says
    assert "Delete that file and run `miniplm prepare CONFIG`" in failed.stderr
    shard.unlink()
    assert run_miniplm("prepare", str(config), "--set", f"storage={data}", prefect=prefect_server).returncode == 0
    assert run_miniplm(*arguments, prefect=prefect_server).returncode == 0
    assert {path.name: path.read_bytes() for path in scores.glob("*.parquet")} == whole


def test_a_relative_storage_root_lies_below_the_working_folder(finished, prefect_server, tmp_path):
    """As in the shipped configurations: what is there is found, and what is missing of each kind is made there."""
    config, _ = finished
    kept = shutil.copytree(config.parent / "data", tmp_path / "data")
    record = read_record(config)
    scores = kept / "scores" / record["corpus_id"]
    missing = [
        kept / "corpora" / record["corpus_id"] / "heldout" / "shard-00000.parquet",
        *(scores / record[role]["model_id"] / "shard-00002.parquet" for role in ("teacher", "reference")),
        kept / "selections" / record["selection_id"] / "manifest.json",
        kept / "runs" / "tiny" / "run.json",
    ]
    for path in missing:
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in kept.glob("scores/*/*/*.parquet")}
    overrides = ("--set", "storage=./data", "--set", "students=[]")
    result = run_miniplm("run", str(config), *overrides, prefect=prefect_server, cwd=tmp_path)
    assert result.returncode == 0, result.stderr + result.stdout
    assert [path for path in missing if not path.is_file()] == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_names_that_look_like_markup_are_shown_as_they_are(finished, prefect_server, tmp_path):
    config, _ = finished
    content = yaml.safe_load(config.read_text())
    documents = make_documents(80, seed=5)
    for index, document in enumerate(documents):
        document["meta"]["domain"] = ["[/]", "[bold]x[/bold]"][index % 2]
    source = write_jsonl(tmp_path / "odd.jsonl", documents)
    content["corpus"]["sources"] = [{"path": str(source), "domain": "meta.domain"}]
    content |= {"storage": str(tmp_path / "da [x] 'ta"), "students": []}
    other = tmp_path / "odd.yaml"
    other.write_text(yaml.safe_dump(content))
    result = run_miniplm("run", str(other), prefect=prefect_server)
    assert result.returncode == 0, result.stderr
    assert " [/] " in result.stdout
    assert " [bold]x[/bold] " in result.stdout
    assert f"report: {tmp_path / 'da [x] '}" in result.stdout


def test_a_split_that_the_run_needs_and_that_is_empty_is_told_before_anything_is_scored(finished, prefect_server, tmp_path):
    config, _ = finished
    arguments = ("--set", f"storage={tmp_path / 'data'}", "--set", "corpus.splits.heldout=0.0000001")
    result = run_miniplm("run", str(config), *arguments, prefect=prefect_server)
    assert result.returncode == 2
    assert "has no sequence in its heldout split" in result.stderr
    assert not (tmp_path / "data" / "scores").exists()
