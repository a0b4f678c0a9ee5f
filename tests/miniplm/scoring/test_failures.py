"""The note of a shard that could not be scored: written, replaced, found by corpus and model, and gone once it is scored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from miniplm import layout
from miniplm.errors import (
    DamagedFileError,
    DeviceError,
    MiniplmError,
    NoDeviceError,
    ScoreError,
    StorageError,
    StorageUnavailableError,
)
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.scoring.failures import clear_failure, find_failures, record_failure
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import make_corpus, write_scores

ENTRY = ModelEntry(model_id="m", source="m", dtype="float32", weights_digest="sha256:w", num_parameters=1)


@pytest.fixture
def corpus(storage: Storage) -> CorpusManifest:
    return make_corpus(storage, {"candidate": [[[1, 2, 0]], [[3, 4, 0]], [[5, 6, 0]]], "reference": [[[7, 8, 0]]]})


def test_a_failure_tells_shard_error_worker_and_flow_run(storage: Storage, corpus: CorpusManifest) -> None:
    shard = corpus.split_shards("candidate")[1]
    failure = record_failure(storage, shard, ENTRY, ScoreError("shard-00001: 3 NaN"), "gpu-7", "run-1")
    assert (failure.corpus_id, failure.model_id, failure.shard_index) == ("made", "m", 1)
    assert (failure.error, failure.reason, failure.lasting) == ("ScoreError", "shard-00001: 3 NaN", True)
    assert (failure.worker, failure.flow_run_id) == ("gpu-7", "run-1")
    assert abs(datetime.fromisoformat(failure.failed_at) - datetime.now(UTC)) < timedelta(minutes=1)
    assert storage.list_names("scores/made/m/failures") == ["shard-00001.json"]
    assert find_failures(storage, corpus, "m") == {1: failure}


def test_an_error_without_a_message_gives_its_name_as_the_reason(storage: Storage, corpus: CorpusManifest) -> None:
    failure = record_failure(storage, corpus.split_shards("candidate")[0], ENTRY, MemoryError())
    assert (failure.error, failure.reason, failure.lasting) == ("MemoryError", "MemoryError", False)


def test_the_latest_failure_stands_in_place_of_the_one_before(storage: Storage, corpus: CorpusManifest) -> None:
    shard = corpus.split_shards("candidate")[2]
    record_failure(storage, shard, ENTRY, ScoreError("first"), "gpu-1", "run-1")
    record_failure(storage, shard, ENTRY, DeviceError("second"), "gpu-2", "run-2")
    (failure,) = find_failures(storage, corpus, "m").values()
    assert (failure.reason, failure.lasting, failure.flow_run_id) == ("second", False, "run-2")


@pytest.mark.parametrize(
    ("error", "lasting"),
    [(ScoreError("x"), True), (DamagedFileError("x"), True), (StorageError("x"), False), (NoDeviceError("x"), False)],
)
def test_a_failure_is_lasting_where_no_other_worker_can_do_it(
    storage: Storage, corpus: CorpusManifest, error: MiniplmError, lasting: bool
) -> None:
    assert record_failure(storage, corpus.split_shards("candidate")[0], ENTRY, error).lasting is lasting


def test_failures_of_a_root_that_does_not_answer_are_not_taken_for_none(
    storage: Storage, corpus: CorpusManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_failure(storage, corpus.split_shards("candidate")[0], ENTRY, ScoreError("x"))

    def refuse(*_: object) -> object:
        raise StorageUnavailableError("no answer")

    monkeypatch.setattr(Storage, "read_bytes", refuse)
    with pytest.raises(StorageUnavailableError, match="no answer"):
        find_failures(storage, corpus, "m")


def test_a_cleared_failure_is_gone_and_clearing_where_there_is_none_is_fine(storage: Storage, corpus: CorpusManifest) -> None:
    first, second, _ = corpus.split_shards("candidate")
    record_failure(storage, first, ENTRY, ScoreError("x"))
    record_failure(storage, second, ENTRY, ScoreError("x"))
    clear_failure(storage, first, "m")
    clear_failure(storage, first, "m")
    assert list(find_failures(storage, corpus, "m")) == [1]


def test_failures_are_of_one_model(storage: Storage, corpus: CorpusManifest) -> None:
    shard = corpus.split_shards("candidate")[0]
    record_failure(storage, shard, ENTRY, ScoreError("of m"))
    other = ENTRY.model_copy(update={"model_id": "other"})
    record_failure(storage, shard, other, ScoreError("of other"))
    assert [failure.reason for failure in find_failures(storage, corpus, "m").values()] == ["of m"]
    assert find_failures(storage, corpus, "third") == {}


def test_a_failure_beside_scores_leaves_them_alone(storage: Storage, corpus: CorpusManifest) -> None:
    """Scores and notes lie in one folder; a note is no score, and a score no note."""
    first, second, _ = corpus.split_shards("candidate")
    write_scores(storage, first, "m", [2.5], [2])
    record_failure(storage, second, ENTRY, ScoreError("x"))
    assert storage.list_names(layout.scores_folder("made", "m")) == ["failures", "shard-00000.json", "shard-00000.parquet"]
    assert list(find_failures(storage, corpus, "m")) == [1]


def test_shards_of_an_extension_have_their_failures_where_they_were_made(storage: Storage, corpus: CorpusManifest) -> None:
    own = corpus.split_shards("candidate")[0].model_copy(update={"corpus_id": "child", "shard_index": 3})
    child = corpus.model_copy(update={"corpus_id": "child", "parent": "made", "shards": (*corpus.shards, own)})
    record_failure(storage, corpus.split_shards("candidate")[1], ENTRY, ScoreError("of the parent"))
    record_failure(storage, own, ENTRY, ScoreError("of the child"))
    assert {index: failure.reason for index, failure in find_failures(storage, child, "m").items()} == {
        1: "of the parent",
        3: "of the child",
    }
    assert list(find_failures(storage, corpus, "m")) == [1]
    assert storage.list_names("scores/child/m/failures") == ["shard-00003.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"corpus_id": "made"}', b"\xff\xfe"])
def test_a_damaged_note_is_no_failure(storage: Storage, corpus: CorpusManifest, content: bytes) -> None:
    storage.write_bytes(layout.score_failure("made", "m", 0), content)
    record_failure(storage, corpus.split_shards("candidate")[1], ENTRY, ScoreError("x"))
    assert list(find_failures(storage, corpus, "m")) == [1]


def test_notes_of_shards_that_the_corpus_has_not_are_left_out(storage: Storage, corpus: CorpusManifest) -> None:
    stranger = corpus.split_shards("candidate")[0].model_copy(update={"shard_index": 7})
    record_failure(storage, stranger, ENTRY, ScoreError("x"))
    assert find_failures(storage, corpus, "m") == {}
