"""Samples of kept and random sequences on a storage root: against the files themselves, and found again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.corpus.reader import load_corpus
from miniplm.errors import CorpusError, RunError
from miniplm.records.run import RunRecord, load_run
from miniplm.run.inspection import inspect_diversity
from miniplm.selection.diversity_sample import count_embedded, measure_diversity, provide_diversity
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage
from tests.miniplm.report_fixtures import REFERENCE, TEACHER, RunPlan, make_run
from tests.tiny_runs import FinishedRun

Made = tuple[Storage, RunRecord]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_run(tmp_path_factory.mktemp("diversity"), plan=RunPlan(ratio=0.4))


def test_a_sample_of_all_that_was_kept_has_its_mean_nll(made: Made) -> None:
    storage, record = made
    corpus, selection = load_corpus(storage, record.corpus_id), load_selection(storage, record.selection_id)
    measured = measure_diversity(storage, corpus, selection)
    rows = [pq.read_table(storage.path(layout.selection_shard(selection.selection_id, s.shard_index))) for s in selection.shards]
    teacher = np.concatenate([table["teacher_nll"].to_numpy() for table in rows])
    reference = np.concatenate([table["reference_nll"].to_numpy() for table in rows])
    assert measured.kept.num_sequences == measured.random.num_sequences == selection.num_selected == len(teacher)
    assert measured.kept.num_tokens == selection.num_selected_tokens
    assert measured.kept.teacher_nll == pytest.approx(teacher.mean())
    assert measured.kept.teacher_nll_quantiles == pytest.approx(np.quantile(teacher, [0.1, 0.5, 0.9]))
    assert measured.kept.reference_nll == pytest.approx(reference.mean())
    # Kept for a higher difference, which random candidates do not have.
    assert measured.random.reference_nll - measured.random.teacher_nll < measured.kept.reference_nll - measured.kept.teacher_nll
    assert measured.kept.embedding_spread is None
    assert measured.num_embedded == 0


def test_the_same_selection_is_always_sampled_alike(made: Made) -> None:
    storage, record = made
    corpus, selection = load_corpus(storage, record.corpus_id), load_selection(storage, record.selection_id)
    assert measure_diversity(storage, corpus, selection) == measure_diversity(storage, corpus, selection)
    seen: list[int] = []

    def embed(sequences: list[np.ndarray]) -> np.ndarray:
        seen.extend(map(len, sequences))
        return np.array([[float(seq.mean()), float(seq.std()), 1.0] for seq in sequences])

    measured = measure_diversity(storage, corpus, selection, embed, num_embedded=8)
    assert len(seen) == 16
    assert measured.num_embedded == 8
    assert measured.kept.embedding_spread is not None


def test_measured_once_and_read_by_inspect(tmp_path: Path) -> None:
    storage, record = make_run(tmp_path, plan=RunPlan())
    with pytest.raises(RunError, match="has no selection yet"):
        inspect_diversity(storage, record.model_copy(update={"selection_id": None}))
    corpus, selection = load_corpus(storage, record.corpus_id), load_selection(storage, record.selection_id)
    measured = provide_diversity(storage, corpus, selection, REFERENCE)
    for shard in selection.shards:  # found, not measured again
        storage.delete(layout.score_shard(corpus.corpus_id, TEACHER.model_id, shard.shard_index))
    assert provide_diversity(storage, corpus, selection, REFERENCE) == measured == inspect_diversity(storage, record)
    storage.delete(layout.selection_diversity(selection.selection_id))
    with pytest.raises(CorpusError, match="miniplm status"):
        provide_diversity(storage, corpus, selection, REFERENCE)


def test_a_larger_reference_embeds_fewer_and_a_huge_one_none() -> None:
    assert [count_embedded(size) for size in (1, 10_000_000, 135_000_000, 7_000_000_000)] == [64, 64, 14, 0]


def test_inspect_adds_the_spread_by_the_runs_own_reference(finished_run: FinishedRun, tmp_path: Path) -> None:
    assert "How varied and how hard" in (finished_run.data / "runs" / "tiny" / "report.html").read_text()
    shutil.copytree(finished_run.data, tmp_path / "data")
    storage = Storage(str(tmp_path / "data"))
    record = load_run(storage, "tiny")
    before = storage.read_json(layout.selection_diversity(record.selection_id))
    assert (before["num_embedded"], before["kept"]["embedding_spread"]) == (0, None)
    measured = inspect_diversity(storage, record)
    assert measured.num_embedded == 64
    assert 0 < measured.kept.embedding_spread < 1.5
    assert measured.kept.distinct_ngrams == tuple(before["kept"]["distinct_ngrams"])
    assert storage.read_json(layout.selection_diversity(record.selection_id)) == measured.as_json()
