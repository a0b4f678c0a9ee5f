"""Inspection of sequences and domains, against the files read by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from miniplm import layout
from miniplm.errors import ConfigError, CorpusError, RunError, ScoreJoinError
from miniplm.records.run import RunRecord
from miniplm.run.inspection import inspect_domains, inspect_sequence, inspect_sequences
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage
from tests.miniplm.report_fixtures import CORPUS_ID, TEACHER, RunPlan, make_run

# Difference scores of sequences 0..5 are 0.0, 0.1, 0.2, 0.0, 0.1, 0.2, ... and those of the domain "b" are a tenth of that lower.
_SCORES = (3.0, 3.1, 3.2)


def make_tied_run(root: Path, num_sequences: int = 12, **changes: object) -> tuple[Storage, RunRecord]:
    """Sequence i has difference score 0, 0.1 or 0.2 after i mod 3; domains a, b take turns."""
    count = iter(range(num_sequences))
    plan = RunPlan(
        texts={"a": "some words to read. " * 60, "b": "other text, also short. " * 60},
        num_sequences=num_sequences,
        num_per_shard=5,
        students=(),
        **changes,  # type: ignore[arg-type]
    )
    return make_run(root, plan=plan, nll=lambda domain, draw: (3.0, _SCORES[next(count) % 3]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, RunRecord]:
    return make_tied_run(tmp_path_factory.mktemp("run"))


def list_ids(storage: Storage, record: RunRecord, **arguments: object) -> list[int]:
    return [sequence.sequence_id for sequence in inspect_sequences(storage, record, **arguments)]  # type: ignore[arg-type]


def test_ranking_breaks_ties_by_the_smaller_id(run: tuple[Storage, RunRecord]) -> None:
    assert list_ids(*run) == [2, 5, 8, 11, 1, 4, 7, 10, 0, 3, 6, 9]
    assert list_ids(*run, limit=3) == [2, 5, 8]
    assert list_ids(*run, order="bottom") == [9, 6, 3, 0, 10, 7, 4, 1, 11, 8, 5, 2]
    assert list_ids(*run, domain="b") == [5, 11, 1, 7, 3, 9]
    assert list_ids(*run, order="bottom", domain="a", limit=2) == [6, 0]


def test_selected_is_what_the_selection_holds(run: tuple[Storage, RunRecord]) -> None:
    kept = {sequence.sequence_id for sequence in inspect_sequences(*run) if sequence.selected}
    assert kept == {2, 5, 8, 11, 1, 4}


def test_sequence_tells_text_origin_and_scores(run: tuple[Storage, RunRecord]) -> None:
    storage, record = run
    sequence = inspect_sequence(storage, record, 7)
    row = pq.read_table(storage.path(layout.corpus_shard(CORPUS_ID, "candidate", 1))).to_pylist()[2]
    tokenizer = AutoTokenizer.from_pretrained(storage.path(layout.corpus_tokenizer(CORPUS_ID)))
    assert row["sequence_id"] == 7
    assert sequence.text == tokenizer.decode(row["token_ids"])
    assert (sequence.split, sequence.domain, sequence.num_tokens) == ("candidate", "b", len(row["token_ids"]))
    assert sequence.num_scored_tokens == len(row["token_ids"]) - 1
    assert sequence.teacher_nll == pytest.approx(3.0, abs=1e-12)
    assert sequence.reference_nll == pytest.approx(3.1, abs=1e-12)
    assert sequence.difference_score == pytest.approx(0.1, abs=1e-12)
    assert sequence.selected is False
    assert sequence.document_ids == (7,)


@pytest.mark.parametrize(
    ("sequence_id", "path", "number"), [(0, "samples/a.jsonl", 1), (8, "samples/a.jsonl", 9), (9, "samples/b.parquet", 1)]
)
def test_document_is_traced_to_its_record(run: tuple[Storage, RunRecord], sequence_id: int, path: str, number: int) -> None:
    # 14 documents and 4 rejected records: file a holds the first 9.
    document = inspect_sequence(*run, sequence_id).documents[0]
    assert (document.path, document.record_number) == (path, number)


def test_document_beyond_the_sources_has_no_origin(tmp_path: Path) -> None:
    storage, record = make_tied_run(tmp_path)
    manifest = storage.read_json(layout.corpus_manifest(CORPUS_ID))
    manifest["sources"] = manifest["sources"][1:]
    storage.write_json(layout.corpus_manifest(CORPUS_ID), manifest)
    document = inspect_sequence(storage, record, 0).documents[0]
    assert (document.document_id, document.path, document.record_number) == (0, None, None)


@pytest.mark.parametrize(("sequence_id", "split"), [(12, "reference"), (13, "heldout")])
def test_sequence_of_another_split_has_no_scores(run: tuple[Storage, RunRecord], sequence_id: int, split: str) -> None:
    sequence = inspect_sequence(*run, sequence_id)
    assert sequence.split == split
    assert sequence.text
    assert sequence.difference_score is sequence.teacher_nll is sequence.num_scored_tokens is None
    assert sequence.selected is False


def test_unscored_shard_is_shown_without_scores(tmp_path: Path) -> None:
    storage, record = make_tied_run(tmp_path)
    storage.delete(layout.score_shard_manifest(CORPUS_ID, TEACHER.model_id, 1))
    assert inspect_sequence(storage, record, 7).difference_score is None
    assert inspect_sequence(storage, record, 4).difference_score == pytest.approx(0.1)
    unscored = record.model_copy(update={"teacher": None, "selection_id": None})
    sequence = inspect_sequence(storage, unscored, 4)
    assert sequence.difference_score is None
    assert sequence.selected is None


def test_sum_score_is_what_a_run_by_sums_ranks_by(tmp_path: Path) -> None:
    storage, record = make_tied_run(tmp_path, score="sum")
    for sequence in inspect_sequences(storage, record, limit=4):
        assert sequence.num_scored_tokens is not None
        assert sequence.difference_score == pytest.approx(0.2 * sequence.num_scored_tokens)
        assert inspect_sequence(storage, record, sequence.sequence_id) == sequence


def test_record_survives_json(run: tuple[Storage, RunRecord]) -> None:
    sequence = inspect_sequence(*run, 3)
    assert type(sequence).model_validate_json(sequence.model_dump_json()) == sequence
    assert sequence.as_json()["documents"] == [{"document_id": 3, "path": "samples/a.jsonl", "record_number": 4}]


def test_domains_tell_every_split_and_the_selection(run: tuple[Storage, RunRecord]) -> None:
    storage, record = run
    a, b = inspect_domains(storage, record)
    assert (a.domain, b.domain) == ("a", "b")
    assert (a.splits["candidate"].num_sequences, b.splits["candidate"].num_sequences) == (6, 6)
    assert ("reference" in a.splits, "reference" in b.splits) == (True, False)
    assert a.selection == load_selection(storage, record.selection_id or "").domains["a"]
    assert a.selection is not None
    assert b.selection is not None
    # Kept are 2, 4, 8 of a and 1, 5, 11 of b.
    assert (a.selection.num_selected, b.selection.num_selected) == (3, 3)
    assert inspect_domains(storage, record.model_copy(update={"selection_id": None}))[0].selection is None


@pytest.mark.parametrize("sequence_id", [-1, 14, 10**12])
def test_unknown_id_is_refused_with_the_range(run: tuple[Storage, RunRecord], sequence_id: int) -> None:
    with pytest.raises(ConfigError, match=f"has no sequence {sequence_id}; its sequence ids go from 0 to 13"):
        inspect_sequence(*run, sequence_id)


def test_unknown_domain_order_and_limit_are_refused(run: tuple[Storage, RunRecord]) -> None:
    with pytest.raises(ConfigError, match="has no domain 'c'; its domains: a, b"):
        inspect_sequences(*run, domain="c")
    with pytest.raises(ConfigError, match="order is 'best'; it must be top"):
        inspect_sequences(*run, order="best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="limit is 0; it must be at least 1"):
        inspect_sequences(*run, limit=0)


def test_unfinished_run_says_what_is_missing(run: tuple[Storage, RunRecord]) -> None:
    storage, record = run
    with pytest.raises(RunError, match="has no corpus yet"):
        inspect_domains(storage, record.model_copy(update={"corpus_id": None}))
    with pytest.raises(RunError, match="has no scores yet"):
        inspect_sequences(storage, record.model_copy(update={"reference": None}))


@pytest.mark.parametrize("damage", [b"", b"PAR1 but no more", None])
def test_damaged_corpus_shard_is_named(tmp_path: Path, damage: bytes | None) -> None:
    storage, record = make_tied_run(tmp_path)
    relative = layout.corpus_shard(CORPUS_ID, "heldout", 0)
    storage.delete(relative)
    if damage is not None:
        storage.write_bytes(relative, damage)
    with pytest.raises(CorpusError, match=r"heldout/shard-00000.parquet cannot be read .*miniplm prepare"):
        inspect_sequence(storage, record, 13)


def test_shard_with_other_sequences_is_refused(tmp_path: Path) -> None:
    storage, record = make_tied_run(tmp_path)
    other = storage.read_bytes(layout.corpus_shard(CORPUS_ID, "candidate", 0))
    storage.write_bytes(layout.corpus_shard(CORPUS_ID, "candidate", 1), other)
    with pytest.raises(CorpusError, match="does not hold the sequences that the manifest of corpus corpus-1 says"):
        inspect_sequence(storage, record.model_copy(update={"teacher": None}), 7)


def test_damaged_scores_are_refused(tmp_path: Path) -> None:
    storage, record = make_tied_run(tmp_path)
    storage.write_bytes(layout.score_shard(CORPUS_ID, TEACHER.model_id, 1), b"PAR1")
    with pytest.raises(ScoreJoinError, match=r"shard-00001 has broken teacher scores.*--model teacher --shard 1"):
        inspect_sequence(storage, record, 7)
    with pytest.raises(ScoreJoinError, match="shard-00001 has broken teacher scores"):
        inspect_sequences(storage, record)
    assert inspect_sequence(storage, record, 2).selected is True
