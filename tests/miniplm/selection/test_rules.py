"""Whole selections by each rule against pandas and plain loops."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.errors import ConfigError, ScoreError
from miniplm.records.manifests import CorpusManifest, DocumentScoresEntry
from miniplm.records.selections import SelectionManifest
from miniplm.scoring.documents import DOCUMENT_SCHEMA
from miniplm.scoring.shards import check_score_shards
from miniplm.selection.noise import draw_gumbel
from miniplm.selection.ranking import resolve_selection_id, select_sequences
from miniplm.storage.root import Storage, digest_file
from tests.miniplm.made_corpora import make_corpus, write_scores
from tests.miniplm.selection.test_selection import REFERENCE, TEACHER, make_scored_corpus, random_scores, read_selection

NUM = 60
DOCUMENTS = {one: [2 * one, 2 * one + 1] if one % 3 else [2 * one] for one in range(NUM)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, CorpusManifest, pd.DataFrame]:
    """Candidates of three domains in shards of 7, and the same as a table; each shard has scores of documents."""
    storage = Storage(str(tmp_path_factory.mktemp("rules")))
    teacher, reference, num_scored = random_scores(NUM, seed=4)
    sequences = [[1] * (3 + i % 5) for i in range(NUM)]
    corpus = make_corpus(
        storage,
        {"candidate": [sequences[start : start + 7] for start in range(0, NUM, 7)]},
        domains=["web", "code", "web", "wiki"],
        document_ids=DOCUMENTS,
    )
    for shard in corpus.split_shards("candidate"):
        rows = slice(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
        write_scores(storage, shard, TEACHER, teacher[rows], num_scored[rows])
        write_scores(storage, shard, REFERENCE, reference[rows], num_scored[rows])
        parts = [
            (document, one, count_part(num_scored, one, place), 0.5)
            for one in range(rows.start, rows.stop)
            for place, document in enumerate(DOCUMENTS[one])
        ]
        write_document_scores(storage, corpus, shard.shard_index, parts)
    table = pd.DataFrame(
        {
            "sequence_id": range(NUM),
            "domain": [["web", "code", "web", "wiki"][i % 4] for i in range(NUM)],
            "num_tokens": [len(sequence) for sequence in sequences],
            "num_scored_tokens": num_scored,
            "teacher_nll": teacher / num_scored,
            "reference_nll": reference / num_scored,
            "difference_score": reference / num_scored - teacher / num_scored,
        }
    )
    return storage, corpus, table


def count_part(num_scored: Any, one: int, place: int) -> int:
    """Scored tokens of a document in a sequence: a third is the first one's, where there are two."""
    total = int(num_scored[one])
    first = total // 3 if len(DOCUMENTS[one]) == 2 else total
    return first if place == 0 else total - first


def write_document_scores(
    storage: Storage, corpus: CorpusManifest, shard_index: int, parts: list[tuple[int, int, int, float]]
) -> None:
    table = pa.Table.from_arrays([pa.array(column) for column in zip(*parts, strict=True)], names=DOCUMENT_SCHEMA.names).cast(
        DOCUMENT_SCHEMA
    )
    with storage.publish(layout.document_scores("made", TEACHER, shard_index)) as path:
        pq.write_table(table, path)
        entry = DocumentScoresEntry(
            digest=digest_file(path), num_bytes=path.stat().st_size, num_rows=len(parts), num_unattributed=0
        )
    state = next(state for state in check_score_shards(storage, corpus, TEACHER) if state.shard_index == shard_index)
    assert state.manifest is not None
    manifest = state.manifest.model_copy(update={"documents": entry})
    storage.write_json(layout.score_shard_manifest("made", TEACHER, shard_index), manifest.as_json())


def select(made: tuple[Storage, CorpusManifest, pd.DataFrame], **rule: Any) -> tuple[SelectionManifest, pd.DataFrame]:
    storage, corpus, _ = made
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig.model_validate(rule))
    return manifest, read_selection(storage, manifest)


def best(table: pd.DataFrame, key: pd.Series, num: int) -> list[int]:
    """The oracle: a stable sort of all by the key, ties by id."""
    order = table.assign(key=key).sort_values(["key", "sequence_id"], ascending=[False, True])
    return sorted(order["sequence_id"][:num].tolist())


def write_signal(path: Path, **columns: Any) -> dict[str, Any]:
    pq.write_table(pa.table(columns), path)
    return {"name": "edu", "path": str(path), "key": next(iter(columns)), "column": list(columns)[-1]}


def test_ids_and_bytes_by_the_published_rule_are_what_they_were(tmp_path: Path) -> None:
    """Written by the version before there were rules."""
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *[list(column) for column in random_scores(50, 1)], sequences_per_shard=7)
    for rule, selection_id, digest in (
        ({}, "mean-0.5-57890265478b", "e137730e0e6fc1b6"),
        ({"seed": 5, "ratio": 0.5}, "mean-0.5-57890265478b", "e137730e0e6fc1b6"),
        ({"ratio": 0.3, "score": "sum"}, "sum-0.3-3fcc75b54b0c", "826b10467d3df868"),
        ({"ratio": 0.3, "within": "domain"}, "mean-0.3-by-domain-bbe5bf5a3ff0", "26eaac00b234aa2e"),
    ):
        manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig.model_validate(rule))
        content = storage.read_bytes(layout.selection_manifest(manifest.selection_id))
        assert (manifest.selection_id, hashlib.sha256(content).hexdigest()[:16]) == (selection_id, digest)
    assert set(SelectionConfig().model_dump(mode="json")) == {"ratio", "score", "within", "seed"}


def test_a_token_budget_keeps_the_best_that_fit(made) -> None:
    _, _, table = made
    manifest, rows = select(made, tokens="1.1e2")
    order = table.sort_values(["difference_score", "sequence_id"], ascending=[False, True])
    wanted = order["sequence_id"][order["num_tokens"].cumsum() <= 110]
    assert rows["sequence_id"].tolist() == sorted(wanted)
    assert 110 - 7 < manifest.num_selected_tokens <= 110
    assert (manifest.ratio, manifest.rule, manifest.title) == (None, {"tokens": 110}, "110 tokens")
    assert manifest.selection_id.startswith("mean-110-tokens-")
    assert manifest.threshold == rows["difference_score"].min()
    (pool,) = manifest.pools
    assert (pool.num_selected, pool.num_selected_tokens, pool.threshold) == (
        len(rows),
        manifest.num_selected_tokens,
        manifest.threshold,
    )


def test_a_threshold_keeps_all_above_it(made) -> None:
    manifest, rows = select(made, threshold=0.0)
    table = made[2]
    assert rows["sequence_id"].tolist() == table["sequence_id"][table["difference_score"] >= 0].tolist()
    assert manifest.title == "scores of at least 0"
    assert select(made, threshold=0.0, score="sum")[0].selection_id.startswith("sum-above-0-")


def test_a_mix_is_met_to_within_a_sequence_and_told_by_pool(made) -> None:
    manifest, rows = select(made, ratio=0.5, mix={"code": 0.1, "wiki": {"at_least": 0.3, "at_most": 0.5}})
    budget = sum(made[2]["num_tokens"]) // 2
    assert budget - 3 * 7 < manifest.num_selected_tokens <= budget
    kept = {name: counts.num_selected_tokens for name, counts in manifest.domains.items()}
    assert 0.1 * budget - 7 < kept["code"] <= 0.1 * budget
    assert 0.3 * budget <= kept["wiki"] <= 0.5 * budget
    assert [pool.domains for pool in manifest.pools] == [("code",), ("web",), ("wiki",)]
    assert [pool.num_selected_tokens for pool in manifest.pools] == [kept["code"], kept["web"], kept["wiki"]]
    table = made[2].merge(rows[["sequence_id"]])
    assert table.groupby("domain")["num_tokens"].sum().to_dict() == kept
    # Each domain keeps its own best.
    for name, group in made[2].groupby("domain"):
        num = manifest.domains[name].num_selected
        assert table["sequence_id"][table["domain"] == name].tolist() == best(group, group["difference_score"], num)


def test_temperature_draws_by_a_key_that_depends_on_id_and_seed_alone(made) -> None:
    manifest, rows = select(made, ratio=0.4, temperature=0.7, seed=3)
    table = made[2]
    key = table["difference_score"] + 0.7 * draw_gumbel(table["sequence_id"].to_numpy(), 3)
    assert rows["sequence_id"].tolist() == best(table, key, 24)
    assert rows["ranking_key"].tolist() == key[rows["sequence_id"]].tolist()
    assert rows["difference_score"].tolist() == table["difference_score"][rows["sequence_id"]].tolist()
    assert manifest.rule == {"temperature": 0.7, "seed": 3}
    assert manifest.threshold is None
    assert select(made, ratio=0.4, temperature=0.7, seed=4)[0].selection_id != manifest.selection_id
    cold, greedy = select(made, ratio=0.4, temperature=1e-9)[1], select(made, ratio=0.4)[1]  # of equal scores, others
    assert sorted(cold["difference_score"]) == sorted(greedy["difference_score"])


def test_noise_is_gumbel_and_draws_in_proportion_to_the_exponential() -> None:
    noise = draw_gumbel(np.arange(200_000), 0)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.03)
    assert draw_gumbel(np.array([7, 3]), 5).tolist() == [draw_gumbel(np.arange(10), 5)[7], draw_gumbel(np.arange(10), 5)[3]]
    # Of three scores 0, 1, 2 the last is drawn first in proportion to exp(2).
    keys = np.arange(3) + noise[:150_000].reshape(-1, 3)
    shares = np.bincount(keys.argmax(axis=1), minlength=3) / len(keys)
    assert shares.tolist() == pytest.approx((np.exp(np.arange(3)) / np.exp(np.arange(3)).sum()).tolist(), abs=0.01)


def test_an_expression_is_ranked_and_a_condition_leaves_out(made) -> None:
    storage, _, table = made
    manifest, rows = select(
        made, ratio=0.5, score="2 * difference_score - ln(num_tokens)", where="domain <> 'code' AND num_tokens BETWEEN 4 AND 6"
    )
    left = table[(table["domain"] != "code") & table["num_tokens"].between(4, 6)]
    score = 2 * left["difference_score"] - np.log(left["num_tokens"])
    assert rows["sequence_id"].tolist() == best(left, score, len(left) // 2)
    assert rows["score"].tolist() == pytest.approx(score[rows["sequence_id"]].tolist(), abs=1e-12)
    assert manifest.left_out == {"where": NUM - len(left)}
    assert (manifest.num_candidates, manifest.num_selected) == (NUM, len(left) // 2)
    assert manifest.selection_id.startswith("sql-0.5-where-")
    assert manifest.domains["code"].num_selected == 0
    only = select(made, ratio=1, where="difference_score > 1")[1]
    assert only["sequence_id"].tolist() == table["sequence_id"][table["difference_score"] > 1].tolist()
    del storage


def test_a_signal_by_sequence_joins_whatever_its_order(made, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permutation(NUM)
    edu = np.arange(NUM) % 9 / 4
    signal = write_signal(tmp_path / "edu.parquet", sequence_id=ids, edu=edu[ids])
    _, rows = select(made, ratio=0.3, score="difference_score + edu", signals=[signal])
    assert rows["sequence_id"].tolist() == best(made[2], made[2]["difference_score"] + edu, 18)
    # The id is of what the files hold, not of where they lie.
    pq.write_table(pa.table({"sequence_id": ids, "edu": edu[ids]}), tmp_path / "elsewhere.parquet")
    config = {"ratio": 0.3, "score": "difference_score + edu"}
    found = [
        resolve_selection_id(
            made[0], made[1], TEACHER, REFERENCE, SelectionConfig.model_validate({**config, "signals": [{**signal, "path": path}]})
        )
        for path in (signal["path"], str(tmp_path / "else*.parquet"), str(write_changed(tmp_path, ids)))
    ]
    assert found[0] == found[1] != found[2]


def write_changed(folder: Path, ids: Any) -> Path:
    pq.write_table(pa.table({"sequence_id": ids, "edu": np.ones(NUM)}), folder / "changed.parquet")
    return folder / "changed.parquet"


def test_a_signal_by_document_is_weighted_by_scored_tokens(made, tmp_path: Path) -> None:
    documents = [document for one in range(NUM) for document in DOCUMENTS[one]]
    values = {document: document % 11 / 3 for document in documents if document % 10}
    signal = write_signal(tmp_path / "edu.parquet", document_id=list(values), edu=list(values.values()))
    _, rows = select(made, ratio=0.3, score="edu", signals=[{**signal, "missing": -1}])
    num_scored = made[2]["num_scored_tokens"]
    wanted = []
    for one in range(NUM):
        parts = [(count_part(num_scored, one, place), values.get(document, -1.0)) for place, document in enumerate(DOCUMENTS[one])]
        wanted.append(sum(tokens * value for tokens, value in parts) / sum(tokens for tokens, _ in parts))
    assert rows["sequence_id"].tolist() == best(made[2], pd.Series(wanted).round(9), 18) == best(made[2], pd.Series(wanted), 18)
    assert rows["score"].tolist() == pytest.approx([wanted[one] for one in rows["sequence_id"]])
    with pytest.raises(
        ConfigError,
        match=r"signals edu: 12 documents of the candidates have no value \(document_id .*give the signal a default: missing",
    ):
        select(made, ratio=0.3, score="edu", signals=[signal])


def test_a_proxy_takes_the_parts_of_documents_from_the_references_scores(made, tmp_path: Path) -> None:
    storage, corpus, table = made
    proxy, num_scored = "proxy-linear-0123456789ab", table["num_scored_tokens"].to_numpy()
    for shard in corpus.split_shards("candidate"):
        rows = slice(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
        write_scores(storage, shard, proxy, (table["reference_nll"].to_numpy() * num_scored)[rows], num_scored[rows])
    documents = [document for one in range(NUM) for document in DOCUMENTS[one]]
    signal = write_signal(tmp_path / "edu.parquet", document_id=documents, edu=[document % 11 for document in documents])
    config = SelectionConfig.model_validate({"ratio": 0.3, "score": "edu", "signals": [signal]})
    by_proxy = select_sequences(storage, corpus, proxy, TEACHER, config)  # the one that has scores of documents
    wanted = select(made, ratio=0.3, score="edu", signals=[signal])[1]
    assert read_selection(storage, by_proxy)["sequence_id"].tolist() == wanted["sequence_id"].tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sequence_id": [*range(NUM), 3], "edu": [0.0] * (NUM + 1)}, r"has more than one row for a sequence_id: 3; give each"),
        ({"sequence_id": range(NUM), "edu": [float("nan"), *[0.0] * (NUM - 1)]}, r"has a edu that is NaN or infinite: 0"),
        (
            {"sequence_id": range(NUM), "edu": [None, *[0.0] * (NUM - 1)]},
            r"1 of 7 sequences of shard-00000 have no value \(sequence_id 0\)",
        ),
        ({"sequence_id": range(NUM - 8), "edu": [0.0] * (NUM - 8)}, r"have no value \(sequence_id"),
        ({"sequence_id": ["a"], "edu": [0.0]}, r"the column sequence_id of .* is string, not a whole number"),
        ({"sequence_id": [1], "edu": ["high"]}, r"the column edu of .* is string, not a number"),
    ],
)
def test_a_signal_that_cannot_be_used_is_refused(made, tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    signal = write_signal(tmp_path / "edu.parquet", **columns)
    with pytest.raises(ConfigError, match=message):
        select(made, ratio=0.3, score="edu", signals=[signal])


def test_files_of_a_signal_that_are_not_there_are_refused(made, tmp_path: Path) -> None:
    signal = write_signal(tmp_path / "edu.parquet", sequence_id=range(NUM), edu=[0.0] * NUM)
    for change, message in (
        ({"path": str(tmp_path / "no*.parquet")}, r"signals edu: source .* matches no file"),
        ({"column": "quality"}, r"edu\.parquet has no column quality; its columns are sequence_id, edu"),
    ):
        with pytest.raises(ConfigError, match=message):
            select(made, ratio=0.3, score="edu", signals=[{**signal, **change}])
    (tmp_path / "edu.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match=r"edu\.parquet is no Parquet file that can be read"):
        select(made, ratio=0.3, score="edu", signals=[signal])


def test_a_signal_by_document_needs_scores_of_documents(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(9))
    signal = write_signal(tmp_path / "edu.parquet", document_id=range(9), edu=[0.0] * 9)
    with pytest.raises(ScoreError, match=r"`miniplm score CONFIG --documents` makes them"):
        select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig.model_validate({"score": "edu", "signals": [signal]}))


def test_a_score_that_is_no_number_is_refused_with_its_row(made) -> None:
    with pytest.raises(
        ConfigError, match=r"is NULL, NaN or infinite in \d+ rows \(sequence_id .*; the first is \{'sequence_id'.*selection\.where"
    ):
        select(made, score="CASE WHEN num_tokens > 4 THEN 1 END")
    with pytest.raises(ConfigError, match=r"cannot be computed of a row from sequence_id 0 on: .*web.*selection\.where"):
        select(made, score="CAST(domain AS DOUBLE)")
    _, rows = select(made, ratio=1, score="ln(num_tokens - 3)", where="num_tokens > 3")
    assert len(rows) == 48
    with pytest.raises(ConfigError, match="no candidate is left to rank"):
        select(made, where="num_tokens > 100")
