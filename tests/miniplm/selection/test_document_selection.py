"""Selections of whole documents, held against pandas over the parts of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.corpus.reader import read_shard
from miniplm.errors import ConfigError, ScoreError
from miniplm.progress import Progress
from miniplm.records.selections import SelectionManifest
from miniplm.selection.noise import draw_gumbel
from miniplm.selection.ranking import resolve_selection_id, select_sequences
from miniplm.selection.steering import check_rule
from miniplm.storage.root import digest_file
from tests.miniplm.document_scores import Scored


@pytest.mark.parametrize("rule", [{"ratio": 0.4}, {"ratio": 0.5, "score": "sum"}, {"ratio": 0.3, "within": "domain"}])
def test_the_best_documents_are_kept_ties_by_the_smaller_id(scored: Scored, rule: dict[str, Any]) -> None:
    manifest = scored.select(**rule)
    documents = scored.documents
    groups = documents.groupby("domain") if "within" in rule else [("all", documents)]
    expected = []
    for _, group in groups:
        ranked = group.sort_values([rule.get("score", "mean")], ascending=False, kind="stable")
        expected += ranked.head(int(rule["ratio"] * len(group) + 1e-9)).index.tolist()
    rows = pd.concat(scored.read(manifest)).drop_duplicates("document_id").set_index("document_id")
    assert sorted(rows.index) == sorted(expected)
    kept = documents.loc[rows.index]
    assert rows["difference_score"].tolist() == pytest.approx(kept[rule.get("score", "mean")].tolist(), abs=1e-12)
    assert rows["num_tokens"].tolist() == kept["tokens"].tolist()
    assert (manifest.num_candidates, manifest.num_selected) == (len(documents), len(expected))
    assert manifest.num_selected_tokens == kept["tokens"].sum()
    assert sum(shard.num_tokens for shard in manifest.shards) == manifest.num_selected_tokens
    for name, domain in manifest.domains.items():
        of_domain = documents[documents["domain"] == name]
        assert (domain.num_candidates, domain.num_candidate_tokens) == (len(of_domain), of_domain["tokens"].sum())
        assert domain.num_selected_tokens == kept[kept["domain"] == name]["tokens"].sum()


def test_token_budgets_mixes_conditions_and_outside_scores_are_of_documents(scored: Scored, tmp_path: Path) -> None:
    documents = scored.documents
    budget = int(documents["tokens"].sum()) // 3
    ranked = documents.sort_values("mean", ascending=False, kind="stable")
    fits = ranked[ranked["tokens"].cumsum() <= budget]
    manifest = scored.select(tokens=budget)
    assert sorted(read_ids(scored, manifest)) == sorted(fits.index)
    assert manifest.num_selected_tokens == fits["tokens"].sum()
    mixed = scored.select(tokens=budget, mix={"web": 0.25, "code": {"at_most": 0.2}})
    for domain, least, most in (("web", 0.25 - documents["tokens"].max() / budget, 0.25), ("code", 0, 0.2)):
        assert least <= mixed.domains[domain].num_selected_tokens / budget <= most
    path = tmp_path / "edu.parquet"
    shuffled = documents.sample(frac=1, random_state=1).index
    pq.write_table(pa.table({"document_id": shuffled, "edu": [(i * 7) % 10 / 10 for i in shuffled]}), path)
    signal = {"name": "edu", "path": str(path), "key": "document_id", "column": "edu"}
    rule = {
        "ratio": 0.5,
        "score": "difference_score + 2 * edu",
        "where": "num_tokens > 20 AND domain <> 'rare'",
        "signals": [signal],
    }
    manifest = scored.select(**rule)
    met = documents[(documents["tokens"] > 20) & (documents["domain"] != "rare")]
    score = (met["mean"] + 2 * pd.Series(met.index * 7 % 10 / 10, met.index)).sort_values(ascending=False, kind="stable")
    assert sorted(read_ids(scored, manifest)) == sorted(score.index[: len(met) // 2])
    assert manifest.left_out == {"where": len(documents) - len(met)}
    rows = pd.concat(scored.read(manifest)).drop_duplicates("document_id").set_index("document_id")
    assert rows["score"].tolist() == pytest.approx(score[rows.index].tolist())


def read_ids(scored: Scored, manifest: SelectionManifest) -> set[int]:
    return set(pd.concat(scored.read(manifest))["document_id"])


def test_what_is_of_sequences_is_refused(scored: Scored) -> None:
    signal = {"name": "edu", "path": "x.parquet", "key": "sequence_id", "column": "edu"}
    with pytest.raises(ConfigError, match="edu has values by sequence, and documents are ranked"):
        check_rule(SelectionConfig.model_validate({"unit": "document", "score": "edu", "signals": [signal]}))
    with pytest.raises(ConfigError, match="unknown column 'sequence_id'; the columns are document_id, domain"):
        scored.select(where="sequence_id < 5")


def test_each_shard_names_the_kept_documents_that_have_text_in_it(scored: Scored) -> None:
    manifest = scored.select(ratio=0.6)
    kept = set(pd.concat(scored.read(manifest))["document_id"])
    crossing = 0
    for shard, rows in zip(scored.corpus.split_shards("candidate"), scored.read(manifest), strict=True):
        here = {document for ids in read_shard(scored.storage, shard)["document_ids"].to_pylist() for document in ids}
        assert set(rows["document_id"]) >= here & kept
        assert (rows["first_sequence_id"] < shard.first_sequence_id + shard.num_sequences).all()
        assert (rows["last_sequence_id"] >= shard.first_sequence_id).all()
        crossing += int((rows["first_sequence_id"] < shard.first_sequence_id).sum())
    assert crossing > 3


def test_the_same_inputs_give_the_same_bytes_and_an_id_of_their_own(scored: Scored, tmp_path: Path) -> None:
    again = Scored(tmp_path)
    rules: list[dict[str, Any]] = [{"ratio": 0.4}, {"ratio": 0.4, "temperature": 0.5, "seed": 3}]
    for rule in rules:
        first, second = scored.select(**rule), again.select(**rule)
        assert [shard.digest for shard in first.shards] == [shard.digest for shard in second.shards]
        assert first.selection_id == second.selection_id
    documents = scored.documents
    noisy = (documents["mean"] + 0.5 * draw_gumbel(documents.index.to_numpy(), 3)).sort_values(ascending=False)
    kept = pd.concat(scored.read(scored.select(**rules[1])))["document_id"].unique()
    assert sorted(kept) == sorted(noisy.index[: len(kept)])
    by_sequence = resolve_selection_id(scored.storage, scored.corpus, "t", "r", SelectionConfig(ratio=0.4))
    assert by_sequence != scored.select(ratio=0.4).selection_id
    assert SelectionConfig(ratio=0.4, unit="sequence").model_dump() == SelectionConfig(ratio=0.4).model_dump()


def test_neither_the_order_of_rows_nor_a_kill_changes_what_is_kept(tmp_path: Path) -> None:
    scored = Scored(tmp_path)
    wanted = scored.select(tokens=700, temperature=0.4)
    wanted_rows = scored.read(wanted)
    shard = scored.corpus.split_shards("candidate")[1]
    path = scored.storage.path(layout.document_scores(shard.corpus_id, "t", 1))
    pq.write_table(pq.read_table(path)[::-1], path)
    manifest = layout.score_shard_manifest(shard.corpus_id, "t", 1)
    content = scored.storage.read_json(manifest)
    content["documents"]["digest"] = digest_file(Path(path))
    scored.storage.write_json(manifest, content)
    config = SelectionConfig(unit="document", ratio=None, tokens=700, temperature=0.4)
    for stage in ("add up documents", "select"):

        def kill(progress: Progress, stage: str = stage) -> None:
            if progress.key == stage and progress.done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            select_sequences(scored.storage, scored.corpus, "t", "r", config, kill)
    again = scored.select(tokens=700, temperature=0.4)
    # Other files of scores, so another selection; what is kept is the same.
    assert again.selection_id != wanted.selection_id
    assert [shard.digest for shard in again.shards] == [shard.digest for shard in wanted.shards]
    assert all(rows.equals(before) for rows, before in zip(scored.read(again), wanted_rows, strict=True))


def test_scores_without_documents_are_told_of(tmp_path: Path) -> None:
    scored = Scored(tmp_path)
    shard = scored.corpus.split_shards("candidate")[1]
    scored.storage.delete(layout.document_scores(shard.corpus_id, "r", 1))
    with pytest.raises(ScoreError, match=r"1 shards have no reference scores of their documents: shard-00001 \(damaged\)"):
        scored.select(ratio=0.5)
