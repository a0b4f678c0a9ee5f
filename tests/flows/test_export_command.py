"""Exports of a finished run: by the command line, as a stage of the configuration, and as a flow whose files are tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from flows.cli.exports import resolve_exports
from miniplm.config.exports import FORMATS, ExportConfig
from miniplm.config.files import check_config, load_config
from miniplm.config.run import config_as_dict
from miniplm.errors import ConfigError
from miniplm.records.selections import SelectionManifest
from miniplm.run import stages
from miniplm.run.model_entries import require_reference
from miniplm.run.resolution import resolve
from miniplm.run.status import check_run, require_corpus, require_selection
from miniplm.storage.root import Storage
from tests.command_line import run_miniplm
from tests.tiny_runs import FinishedRun


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, finished_run: FinishedRun) -> Path:
    """The configuration of a copy of the finished run, with an export and without students."""
    folder = tmp_path_factory.mktemp("exports")
    shutil.copytree(finished_run.data, folder / "data")
    content = yaml.safe_load(finished_run.config.read_text()) | {
        "storage": str(folder / "data"),
        "students": [],
        "exports": [{"format": "jsonl", "to": str(folder / "out" / "{selection}"), "shard_tokens": 4000}],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def read_folder(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_scores(data: Path, corpus_id: str, selection: SelectionManifest, out: Path) -> None:
    """A document's scores are the sums of its parts, by SQL over the score files and the exported rows alone."""
    parts = [
        f"read_parquet('{data}/scores/{corpus_id}/{model}/documents/*.parquet')"
        for model in (selection.teacher_id, selection.reference_id)
    ]
    rows = duckdb.sql(f"""
        SELECT e.id, any_value(e.difference_score), sum(r.nll_sum - t.nll_sum) / sum(t.num_scored_tokens),
               any_value(e.teacher_nll), sum(t.nll_sum) / sum(t.num_scored_tokens)
        FROM (SELECT *, unnest(sequence_ids) AS sequence_id FROM read_json_auto('{out}/*.jsonl')) e
        JOIN {parts[0]} t USING (document_id, sequence_id) JOIN {parts[1]} r USING (document_id, sequence_id)
        GROUP BY e.id HAVING sum(t.num_scored_tokens) > 0
    """).fetchall()
    assert len(rows) > 50
    for _, difference, expected, teacher, expected_teacher in rows:
        assert (difference, teacher) == (pytest.approx(expected, abs=1e-9), pytest.approx(expected_teacher, abs=1e-9))


def test_a_run_is_complete_when_its_exports_are(config: Path, on_prefect_server: None, tmp_path: Path) -> None:
    from flows.export_selection import export_selection

    plan = resolve(load_config(str(config)))
    storage = Storage(plan.storage)
    assert {stage.name: stage.state for stage in check_run(storage, plan).stages}["export jsonl"] == "missing"
    result = run_miniplm("export", str(config), "--json", prefect={})
    assert result.returncode == 0, result.stderr
    (manifest,) = json.loads(result.stdout)
    corpus = require_corpus(storage, plan)
    selection = require_selection(storage, plan, corpus, require_reference(storage, plan, corpus))
    assert manifest["num_source_tokens"] == selection.num_selected_tokens
    check_scores(config.parent / "data", corpus.corpus_id, selection, config.parent / "out" / selection.selection_id)
    status = check_run(storage, plan)
    assert status.complete
    assert {stage.name: stage.num_done for stage in status.stages}["export jsonl"] == manifest["num_files"] > 2
    # The same by a flow, whose files are tasks.
    export = plan.exports[0].model_copy(update={"to": str(tmp_path / "by-flow")})
    _, stage = export_selection(plan, corpus.corpus_id, selection.selection_id, export)
    assert (stage.name, stage.reused, stage.num_units) == ("export jsonl", False, selection.num_selected_tokens)
    folder = config.parent / "out" / selection.selection_id
    assert read_folder(tmp_path / "by-flow") == read_folder(folder)
    assert stages.export(storage, plan, corpus, selection, plan.exports[0])[1].reused
    (folder / "part-00001.jsonl").unlink()
    broken = {stage.name: stage for stage in check_run(storage, plan).stages}["export jsonl"]
    assert (broken.state, "part-00001.jsonl is gone" in broken.detail) == ("broken", True)


def test_the_command_says_what_was_written_and_refuses_in_one_line(config: Path, tmp_path: Path) -> None:
    to = str(tmp_path / "out")
    result = run_miniplm("export", "tiny", "--storage", str(config.parent / "data"), "--format", "megatron", "--to", to, prefect={})
    assert result.returncode == 0, result.stderr
    for words in ("as megatron", "all files were read back", "token ids are uint16", "first: ", f"export: {to}"):
        assert words in result.stdout
    result = run_miniplm("export", str(config), "--format", "megatron", "--to", to, "--shard-tokens", "500", prefect={})
    assert result.returncode == 2
    assert result.stderr.startswith("ConfigError: the export's target")
    assert len(result.stderr.strip().splitlines()) == 1


def test_what_is_asked_for_is_checked_before_the_run_is_looked_at() -> None:
    for asked, reason in (
        ((("csv", "out", {}), "no export format 'csv'; the formats are " + ", ".join(FORMATS))),
        ((("ds", None, {}), "give --format and --to together")),
        (((None, None, {}), "has no `exports:`")),
        (((None, None, {"bos_token": "x"}), "--bos-token is for one export")),
        ((("ds", "out", {"shard_tokens": 0}), "shard_tokens: Input should be greater than or equal to 1")),
        ((("jsonl", "out", {"tokenizer": "x"}), "tokenizer is for formats of token ids")),
    ):
        with pytest.raises(ConfigError, match=reason):
            resolve_exports((), *asked)
    assert resolve_exports((), "ds", "out", {}) == (ExportConfig(format="ds", to="out"),)


def test_runs_without_exports_keep_the_record_that_they_had(finished_run: FinishedRun) -> None:
    content: dict[str, Any] = config_as_dict(load_config(str(finished_run.config)))
    assert "exports" not in content
    assert "exports" not in json.loads((finished_run.data / "runs" / "tiny" / "plan.json").read_text())
    twice = content | {"exports": [{"format": "ds", "to": "out"}, {"format": "npy", "to": "out/"}]}
    with pytest.raises(ConfigError, match="two go to out; each needs a folder of its own"):
        check_config(twice, "run")
