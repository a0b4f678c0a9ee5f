"""What comes after preparation, on a corpus that grew: old scores are used where they lie, the reference stays the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.config.files import load_config
from miniplm.config.run import RunConfig, SelectionConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.errors import CorpusError, ScoreJoinError
from miniplm.records.manifests import CorpusManifest, ShardEntry
from miniplm.run import cost as plan
from miniplm.run.plan import RunPlan
from miniplm.run.resolution import resolve
from miniplm.run.stages import check_splits
from miniplm.run.status import check_run
from miniplm.run.training_plans import plan_reference
from miniplm.scoring.shards import check_score_shards
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage, digest_content
from miniplm.training.methods import METHODS, MethodInputs
from tests.miniplm.made_corpora import write_scores
from tests.tiny_runs import make_documents, make_tiny_run, write_jsonl

TEACHER, REFERENCE = "teacher", "reference"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    path = make_tiny_run(tmp_path, students=[])
    return load_config(str(path), ["corpus.extend=true"])


@pytest.fixture
def storage(config: RunConfig) -> Storage:
    return Storage(config.storage)


def add_file(tmp_path: Path, name: str = "c", num_documents: int = 80, seed: int = 1) -> None:
    write_jsonl(tmp_path / "sources" / f"{name}.jsonl", make_documents(num_documents, seed))


def score(storage: Storage, shards: tuple[ShardEntry, ...]) -> dict[int, float]:
    """Writes scores by both models; the difference scores by sequence id."""
    differences: dict[int, float] = {}
    for shard in shards:
        ids = np.arange(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
        wanted = (ids * 7919 % 101).astype(float)
        write_scores(storage, shard, TEACHER, [1.0] * len(ids), [1] * len(ids))
        write_scores(storage, shard, REFERENCE, (1.0 + wanted).tolist(), [1] * len(ids))
        differences |= dict(zip(ids.tolist(), wanted.tolist(), strict=True))
    return differences


def list_kept(storage: Storage, corpus: CorpusManifest) -> list[int]:
    selection = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.3))
    kept: list[int] = []
    for shard in selection.shards:
        with storage.open(layout.selection_shard(selection.selection_id, shard.shard_index)) as file:
            kept += pq.read_table(file)["sequence_id"].to_pylist()
    return kept


def rank(differences: dict[int, float]) -> list[int]:
    ranked = sorted(differences, key=lambda sequence_id: (-differences[sequence_id], sequence_id))
    return sorted(ranked[: 3 * len(ranked) // 10])


def test_selection_joins_the_scores_of_the_whole_lineage(storage: Storage, config: RunConfig, tmp_path: Path):
    root = prepare_corpus(storage, config.corpus)
    differences = score(storage, root.split_shards("candidate"))
    assert list_kept(storage, root) == rank(differences)
    add_file(tmp_path)
    corpus = prepare_corpus(storage, config.corpus)
    new = tuple(shard for shard in corpus.split_shards("candidate") if shard.corpus_id == corpus.corpus_id)
    assert new
    states = check_score_shards(storage, corpus, TEACHER)
    assert [state.shard_index for state in states if state.state == "missing"] == [shard.shard_index for shard in new]
    with pytest.raises(ScoreJoinError, match=rf"shard-{new[0].shard_index:05d} has no teacher scores"):
        list_kept(storage, corpus)
    differences |= score(storage, new)
    assert len(differences) == corpus.split_counts("candidate").num_sequences
    kept = list_kept(storage, corpus)
    assert kept == rank(differences)
    assert min(kept) < new[0].first_sequence_id < max(kept)
    assert set(storage.list_names("scores")) == {root.corpus_id, corpus.corpus_id}
    # What is selected of the first corpus alone is what it was.
    assert list_kept(storage, root) == rank(
        {
            key: value
            for key, value in differences.items()
            if key < root.shards[-1].first_sequence_id + root.shards[-1].num_sequences
        }
    )


def test_the_reference_is_that_of_the_first_corpus(storage: Storage, config: RunConfig, tmp_path: Path):
    root = prepare_corpus(storage, config.corpus)
    training_id = plan_reference(RunPlan.of(config), root).training_id
    # What it was named before corpora grew: from the shards of the reference split, in their order.
    digest = digest_content([[shard.digest, shard.num_sequences] for shard in root.split_shards("reference")], length=16)
    assert plan_reference(RunPlan.of(config), root).recipe.data == {"reference": digest}
    for seed, name in enumerate("cde", start=1):
        add_file(tmp_path, name, seed=seed)
        corpus = prepare_corpus(storage, config.corpus)
        assert len(corpus.split_shards("reference")) > len(root.split_shards("reference"))
        assert plan_reference(RunPlan.of(config), corpus).training_id == training_id
        shards = METHODS["reference"].list_shards(storage, MethodInputs(corpus))
        assert tuple(shard.entry for shard in shards) == root.split_shards("reference")
    assert corpus.lineage[0] == root.corpus_id


def test_a_first_corpus_without_reference_sequences_is_told(storage: Storage, config: RunConfig, tmp_path: Path):
    for path in (tmp_path / "sources").iterdir():
        path.unlink()
    splits: dict[str, Any] = {"reference": 0.01, "heldout": 0.0}
    corpus_config = config.corpus.model_copy(update={"splits": type(config.corpus.splits)(**splits)})
    config = config.model_copy(update={"corpus": corpus_config})
    write_jsonl(tmp_path / "sources" / "a.jsonl", make_documents(4))
    root = prepare_corpus(storage, corpus_config)
    with pytest.raises(
        CorpusError, match=r"no sequence in its reference split, which this run needs; give corpus\.splits\.reference"
    ):
        check_splits(RunPlan.of(config), root)
    add_file(tmp_path, num_documents=500)
    corpus = prepare_corpus(storage, corpus_config)
    assert corpus.split_shards("reference")
    with pytest.raises(
        CorpusError, match=rf"corpus {root.corpus_id}, which {corpus.corpus_id} extends, .*extend=false.*reference\.model"
    ):
        check_splits(RunPlan.of(config), corpus)


def test_status_tells_new_files_and_what_is_lost_of_a_parent(storage: Storage, config: RunConfig, tmp_path: Path):
    root = prepare_corpus(storage, config.corpus)
    stage = check_run(storage, resolve(config, checks=False)).stages[0]
    assert (stage.state, stage.detail) == ("done", root.corpus_id)
    add_file(tmp_path)
    status = check_run(storage, resolve(config, checks=False))
    assert (status.stages[0].state, status.complete) == ("partial", False)
    assert status.stages[0].detail == f"{root.corpus_id}, 1 new source files to add"
    corpus = prepare_corpus(storage, config.corpus)
    stages = {stage.name: stage for stage in check_run(storage, resolve(config, checks=False)).stages}
    assert stages["prepare"].detail == corpus.corpus_id
    num_shards = len(corpus.split_shards("candidate"))
    assert (stages["score teacher"].num_done, stages["score teacher"].num_total) == (0, num_shards)
    storage.delete(layout.corpus_shard(root.corpus_id, "candidate", 0))
    stage = check_run(storage, resolve(config, checks=False)).stages[0]
    assert (stage.state, stage.num_done) == ("broken", len(corpus.shards) - 1)
    assert [shard.reason for shard in stage.shards] == [f"corpora/{root.corpus_id}/candidate/shard-00000.parquet is gone"]


def test_a_plan_counts_what_is_there_and_estimates_what_is_new(
    storage: Storage, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plan, "_PROBE_SECONDS", 0.01)
    root = prepare_corpus(storage, config.corpus)
    teacher_id = resolve(config, checks=False).require_teacher().model_id
    for shard in root.split_shards("candidate"):
        write_scores(storage, shard, teacher_id, [1.0] * shard.num_sequences, [1] * shard.num_sequences)
    stages = {stage.name: stage for stage in plan.plan_run(resolve(config, checks=False)).stages}
    assert ("prepare" in stages, stages["score teacher"].num_tokens) == (False, 0)
    add_file(tmp_path)
    new = plan.plan_run(resolve(config, checks=False))
    stages = {stage.name: stage for stage in new.stages}
    corpus = prepare_corpus(storage, config.corpus)
    added = corpus.split_counts("candidate").num_tokens - root.split_counts("candidate").num_tokens
    assert not new.corpus_is_prepared
    # The whole of a small file is the sample, so only the shares of the splits are estimated.
    num_new = sum(shard.num_tokens for shard in corpus.shards if shard.corpus_id == corpus.corpus_id)
    assert stages["prepare"].num_tokens == num_new
    assert stages["score teacher"].num_tokens == int(num_new * 0.6) == pytest.approx(added, rel=0.3)
    assert new.num_corpus_tokens == sum(shard.num_tokens for shard in corpus.shards)
    assert json.loads(plan.plan_run(resolve(config, checks=False)).model_dump_json())["corpus_is_prepared"]
