"""Exports of selections by documents: exactly the kept ones, each whole, with its own scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miniplm.config.exports import ExportConfig
from miniplm.export.exporting import export_selection
from miniplm.export.job import ExportJob
from miniplm.export.records import ExportManifest
from miniplm.records.selections import SelectionManifest
from tests.miniplm.document_scores import Scored
from tests.miniplm.export.test_documents import read_rows
from tests.miniplm.export.test_formats import read_megatron


def export(scored: Scored, selection: SelectionManifest, format: str, to: Path, shard_tokens: int) -> ExportManifest:
    config = ExportConfig.model_validate({"format": format, "to": str(to), "shard_tokens": shard_tokens})
    return export_selection(ExportJob(scored.storage, scored.corpus, selection, config))[0]


@pytest.mark.parametrize("shard_tokens", [90, 10**6])
def test_the_kept_documents_are_the_rows_each_whole(scored: Scored, tmp_path: Path, shard_tokens: int) -> None:
    selection = scored.select(ratio=0.5)
    manifest = export(scored, selection, "jsonl", tmp_path / "out", shard_tokens)
    rows = {row["document_id"]: row for row in read_rows(tmp_path / "out")}
    kept = scored.documents.sort_values("mean", ascending=False, kind="stable").head(selection.num_selected)
    assert sorted(rows) == sorted(kept.index)
    assert manifest.num_rows == len(rows) == manifest.num_whole
    assert manifest.num_source_tokens == selection.num_selected_tokens
    for document, row in rows.items():
        assert row["text"] == scored.texts[document]
        assert row["is_whole"]
        assert row["difference_score"] == pytest.approx(kept["mean"][document], abs=1e-12)
        assert row["token_end"] + 1 == kept["tokens"][document]
    assert (manifest.num_files > 5) == (shard_tokens == 90)
    assert not any("scores are those" in note for note in manifest.notes)


def test_their_token_ids_are_those_of_the_corpus(scored: Scored, tmp_path: Path) -> None:
    selection = scored.select(ratio=0.5)
    export(scored, selection, "megatron", tmp_path / "ids", 300)
    export(scored, selection, "jsonl", tmp_path / "text", 300)
    ids = read_megatron(tmp_path / "ids", "uint16")
    tokens = scored.documents["tokens"]
    assert [len(row) for row in ids] == [tokens[row["document_id"]] for row in read_rows(tmp_path / "text")]
    packed = export(scored, selection, "mds", tmp_path / "packed", 300)
    assert packed.rows == "sequences, packed anew"
    assert packed.num_tokens == selection.num_selected_tokens
    assert any("whole documents packed anew" in note for note in packed.notes)
    columns = json.loads((tmp_path / "packed" / "index.json").read_text())["shards"][0]["column_names"]
    assert columns == ["domain", "tokens"]
