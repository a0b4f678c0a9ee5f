"""What a schedule does night after night: new files in the sources extend the corpus, and only they cost anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.command_line import run_miniplm
from tests.tiny_runs import FinishedRun, make_documents, write_jsonl


def read_files(data: Path, pattern: str) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(data.glob(pattern))}


def test_the_second_night_prepares_and_scores_only_what_is_new(
    tmp_path: Path, finished_run: FinishedRun, prefect_server: dict[str, str]
) -> None:
    # The first night finds the run that all tests share, whose sources lay elsewhere.
    data, sources = tmp_path / "data", tmp_path / "sources"
    shutil.copytree(finished_run.data, data)
    shutil.copytree(finished_run.config.parent / "sources", sources)
    content: dict[str, Any] = yaml.safe_load(finished_run.config.read_text())
    content |= {"name": "nightly", "storage": str(data), "students": []}
    content["corpus"] |= {"extend": True, "sources": [{"path": str(sources / "*.jsonl"), "domain": "meta.domain"}]}
    config = tmp_path / "nightly.yaml"
    config.write_text(yaml.safe_dump(content))
    first = run_miniplm("run", str(config), "--json", prefect=prefect_server)
    assert first.returncode == 0, first.stderr
    old = read_files(data, "corpora/c-*/*/*.parquet") | read_files(data, "scores/*/*/shard-*") | read_files(data, "models/*/*")
    write_jsonl(sources / "c.jsonl", make_documents(48, seed=7))

    second = run_miniplm("run", str(config), "--json", prefect=prefect_server)
    assert second.returncode == 0, second.stderr
    assert {path: read_files(data, str(path.relative_to(data)))[path] for path in old} == old
    before, after = json.loads(first.stdout), json.loads(second.stdout)
    assert after["corpus_id"] != before["corpus_id"]
    assert after["reference"]["model_id"] == before["reference"]["model_id"]
    manifests = {
        record["corpus_id"]: json.loads((data / "corpora" / record["corpus_id"] / "manifest.json").read_text())
        for record in (before, after)
    }
    assert manifests[after["corpus_id"]]["parent"] == before["corpus_id"]
    candidates = {
        corpus_id: sum(shard["num_sequences"] for shard in manifest["shards"] if shard["split"] == "candidate")
        for corpus_id, manifest in manifests.items()
    }
    assert candidates[after["corpus_id"]] > candidates[before["corpus_id"]]
    selected = sum(pq.read_metadata(path).num_rows for path in (data / "selections" / after["selection_id"]).glob("*.parquet"))
    assert selected == candidates[after["corpus_id"]] // 2

    third = run_miniplm("run", str(config), "--json", prefect=prefect_server)
    assert json.loads(third.stdout)["selection_id"] == after["selection_id"]
