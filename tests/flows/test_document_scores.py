"""Scores of documents over a whole run: they are those of its sequences cut up, and an older run's are added by one command."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from flows.cli.tables import print_documents
from miniplm import layout
from miniplm.corpus.reader import load_corpus
from miniplm.errors import ScoreError
from miniplm.records.run import load_run
from miniplm.run.inspection import inspect_documents, inspect_sequences
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage
from miniplm.training.records import find_training
from tests.command_line import run_miniplm


def sum_by_document(storage: Storage, corpus, model_id: str) -> dict[int, tuple[float, int]]:
    """By a plain loop over the files."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0])
    for shard in corpus.split_shards("candidate"):
        for row in pq.read_table(storage.path(layout.document_scores(shard.corpus_id, model_id, shard.shard_index))).to_pylist():
            sums[row["document_id"]][0] += row["nll_sum"]
            sums[row["document_id"]][1] += row["num_scored_tokens"]
    return {document_id: (nll, int(num)) for document_id, (nll, num) in sums.items()}


def test_documents_are_ranked_by_their_own_score(finished_run) -> None:
    storage = Storage(str(finished_run.data))
    record = load_run(storage, "tiny")
    corpus = load_corpus(storage, record.corpus_id)
    teacher, reference = (sum_by_document(storage, corpus, model.model_id) for model in (record.teacher, record.reference))
    differences = {document_id: (reference[document_id][0] - nll) / max(num, 1) for document_id, (nll, num) in teacher.items()}
    ranked = sorted(differences, key=lambda document_id: (-differences[document_id], document_id))
    top, bottom = inspect_documents(storage, record, limit=5), inspect_documents(storage, record, "bottom", limit=5)
    assert [document.document_id for document in top.documents] == ranked[:5]
    assert [document.document_id for document in bottom.documents] == ranked[:-6:-1]
    assert (top.num_documents, top.num_unattributed) == (len(ranked), 0)
    for document in top.documents:
        assert document.difference_score == pytest.approx(differences[document.document_id], abs=1e-12)
        assert json.loads(Path(document.path).read_text().splitlines()[document.record_number - 1])
    for shard in corpus.split_shards("candidate"):
        rows = pq.read_table(storage.path(layout.document_scores(shard.corpus_id, record.teacher.model_id, shard.shard_index)))
        summed = rows.group_by("sequence_id").aggregate([("nll_sum", "sum")]).sort_by("sequence_id")["nll_sum_sum"].to_pylist()
        scores = pq.read_table(storage.path(layout.score_shard(shard.corpus_id, record.teacher.model_id, shard.shard_index)))
        assert summed == pytest.approx(scores["nll_sum"].to_pylist(), abs=1e-9)


def test_scores_of_an_earlier_version_get_their_documents_by_one_command(finished_run, tmp_path, prefect_server, capsys) -> None:
    shutil.copytree(finished_run.data, tmp_path / "data")
    storage = Storage(str(tmp_path / "data"))
    record = load_run(storage, "tiny")
    folder = Path(storage.path(layout.scores_folder(record.corpus_id, record.teacher.model_id)))
    before = {file.name: file.read_bytes() for file in folder.rglob("shard-*.parquet")}
    for number in (0, 1):
        (folder / f"documents/shard-0000{number}.documents.parquet").unlink()
    manifest = json.loads((folder / "shard-00000.json").read_text())
    (folder / "shard-00000.json").write_text(json.dumps(manifest | {"documents": None}))
    with pytest.raises(
        ScoreError, match=r"2 shards have no teacher scores of their documents: shard-00000, shard-00001 \(damaged\)"
    ):
        inspect_documents(storage, record)
    finished = ("tiny", "--storage", str(tmp_path / "data"))
    result = run_miniplm("score", *finished, "--model", "teacher", "--documents", prefect=prefect_server)
    assert result.returncode == 0, result.stderr
    assert {file.name: file.read_bytes() for file in folder.rglob("shard-*.parquet")} == before
    print_documents(inspect_documents(storage, record, limit=3))
    told = capsys.readouterr().out
    assert "record" in told
    assert "3 of" in told


def test_a_run_by_documents_trains_exports_and_reports_what_it_kept(finished_run, tmp_path, embedded_prefect) -> None:
    shutil.copytree(finished_run.data, tmp_path / "data")
    training = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}
    content = yaml.safe_load(finished_run.config.read_text()) | {
        "name": "by-document",
        "storage": str(tmp_path / "data"),
        "selection": {"unit": "document", "ratio": 0.4},
        "students": [{"name": "small", "architecture": "qwen-tiny", "method": "miniplm", "training": training}],
        "exports": [{"format": "jsonl", "to": str(tmp_path / "out")}],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    result = run_miniplm("run", str(tmp_path / "config.yaml"), prefect=embedded_prefect)
    assert result.returncode == 0, result.stderr
    storage = Storage(str(tmp_path / "data"))
    record = load_run(storage, "by-document")
    selection = load_selection(storage, record.selection_id)
    assert f"Kept {selection.num_selected:,} of {selection.num_candidates:,} documents" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "out" / "part-00000.jsonl").read_text().splitlines()]
    assert len(rows) == selection.num_selected
    assert all(row["is_whole"] for row in rows)
    recipe = find_training(storage, record.students["small"].training_id).recipe
    assert recipe["data"]["documents"]["kind"] == "documents"
    page = (tmp_path / "data" / "runs" / "by-document" / "report.html").read_text()
    assert f"The {selection.num_selected} documents with the highest r were kept" in " ".join(page.split())
    shown = {one.sequence_id: one.selected for one in inspect_sequences(storage, record, limit=50)}
    assert {True, False} == set(shown.values())
    again = run_miniplm("status", "by-document", "--storage", str(tmp_path / "data"), prefect=embedded_prefect)
    assert again.returncode == 0, again.stdout
