"""Held-out text from elsewhere: packed once, kept apart from the corpus, measured beside its own split without touching that."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from miniplm import layout
from miniplm.config.files import check_config
from miniplm.corpus.overlap import find_kept_overlap
from miniplm.corpus.preparation import prepare_corpus
from miniplm.errors import ConfigError, CorpusError, DamagedSourceError
from miniplm.evaluation.comparison import compare_students
from miniplm.records.manifests import CorpusManifest
from miniplm.records.run import RunRecord
from miniplm.records.texts import MeasuredText
from miniplm.run.outside_texts import describe_overlap, list_texts, name_text, prepare_text
from miniplm.run.pinning import make_absolute
from miniplm.run.plan import RunPlan, find_plan, save_plan
from miniplm.run.student_records import is_evaluated
from miniplm.run.students import evaluate_student
from miniplm.storage.root import Storage
from tests.miniplm.corpus_fixtures import read_tree, save_tokenizer, write_jsonl
from tests.miniplm.made_trainings import make_training_corpus
from tests.miniplm.run.test_student_evaluation import TRAINING, make_config, train_student

WORDS = ["one two.", "three four.", "five one.", "two three.", "four five."]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), "word")


def make_plan(folder: Path, tokenizer: str, texts: list[str], **evaluation: Any) -> RunPlan:
    """A run of a corpus of `WORDS`, measured on `texts`."""
    write_jsonl(folder / "in" / "a.jsonl", [{"text": text} for text in WORDS])
    write_jsonl(folder / "out" / "b.jsonl", [{"text": text} for text in texts])
    content = {
        "name": "r",
        "storage": str(folder / "data"),
        "corpus": {
            "sources": [{"path": str(folder / "in" / "*.jsonl"), "domain_name": "a"}],
            "tokenizer": tokenizer,
            "sequence_length": 8,
            "splits": {"reference": 0.4, "heldout": 0.2},
            "truth": "kind",
        },
        "teacher": {"model": "t"},
        "reference": {"model": "t"},
        "students": [{"name": "s", "architecture": "qwen-tiny", "training": TRAINING}],
        "evaluation": {"sources": [{"path": str(folder / "out" / "*.jsonl"), "domain_name": "b"}], **evaluation},
    }
    return RunPlan.of(check_config(content, "test"))


def prepare(plan: RunPlan) -> tuple[Storage, CorpusManifest, CorpusManifest]:
    storage = Storage(plan.storage)
    corpus = prepare_corpus(storage, plan.corpus)
    text = prepare_text(storage, plan, corpus)
    assert text is not None
    return storage, corpus, text


def test_all_of_the_text_is_packed_once_under_an_id_of_its_content(tmp_path: Path, tokenizer: str) -> None:
    plan = make_plan(tmp_path, tokenizer, ["one three five.", "two four one three."])
    storage, corpus, text = prepare(plan)
    assert {name: counts.num_documents for name, counts in text.domains["candidate"].items()} == {"b": 2}
    assert not text.split_shards("heldout")
    assert list_texts(storage, plan, corpus) == [
        MeasuredText(corpus_id=text.corpus_id, split="candidate"),
        MeasuredText(corpus_id=corpus.corpus_id),
    ]
    before = read_tree(storage, "corpora")
    assert prepare_text(storage, plan, corpus) == text
    assert read_tree(storage, "corpora") == before
    # A worker that cannot see the sources is told the id, which a plan that is kept does not hold: the files may change.
    named = name_text(storage, plan)
    (tmp_path / "out" / "b.jsonl").unlink()
    assert list_texts(storage, named.for_worker(), corpus)[0].corpus_id == text.corpus_id
    save_plan(storage, named)
    kept = find_plan(storage, "r")
    assert kept is not None
    assert kept.text_id is None


def test_documents_of_the_corpus_are_counted_and_refused_unless_allowed(
    tmp_path: Path, tokenizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(tmp_path, tokenizer, ["one three five.", *WORDS[1:4], WORDS[1]])
    with pytest.raises(
        CorpusError,
        match=r"evaluation.sources: 3 of 4 different documents are in the corpus too \(.*\), first .*b.jsonl, line \d\. .* or set evaluation.allow_overlap=true",
    ):
        prepare(plan)
    allowed = plan.model_copy(update={"evaluation": plan.evaluation.model_copy(update={"allow_overlap": True})})
    with caplog.at_level(logging.WARNING, "miniplm"):
        prepare(allowed)
    assert "3 of 4 different documents are in the corpus too" in caplog.text


def test_the_whole_corpus_as_heldout_text_tells_every_split(tmp_path: Path, tokenizer: str) -> None:
    plan = make_plan(tmp_path, tokenizer, WORDS, allow_overlap=True)
    storage, corpus, text = prepare(plan)
    (overlap,) = find_kept_overlap(storage, text.corpus_id, corpus)
    counts = {split: list(overlap.shared.values()).count(split) for split in layout.SPLITS}
    assert counts == {split: corpus.split_counts(split).num_documents for split in layout.SPLITS}
    assert describe_overlap([overlap.model_copy(update={"shared": {}})]) is None


def test_text_of_less_than_a_sequence_or_none_at_all_is_refused(tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises(CorpusError, match=r"evaluation.sources: .*b.jsonl hold 4 tokens, less than one sequence of 9"):
        prepare(make_plan(tmp_path / "short", tokenizer, ["one three."]))
    with pytest.raises(DamagedSourceError, match=r"no usable document in .*b.jsonl: no record. Name other files as sources"):
        prepare(make_plan(tmp_path / "empty", tokenizer, []))


def test_a_student_is_measured_on_both_texts_and_told_by_the_one_from_elsewhere(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    corpus = make_training_corpus(storage, heldout=(8,))
    student = train_student(storage, corpus)
    before = evaluate_student(storage, RunPlan.of(make_config(tmp_path)), corpus, "s", student)
    own = read_tree(storage, layout.training_folder(student.training_id))
    # As a corpus that was made of text from elsewhere is: all of it in one split.
    text = corpus.model_copy(update={"corpus_id": "text", "shards": corpus.split_shards("candidate")[:1]})
    text = text.model_copy(
        update={"shards": tuple(shard.model_copy(update={"corpus_id": corpus.corpus_id}) for shard in text.shards)}
    )
    storage.write_json(layout.corpus_manifest("text"), text.as_json())
    sources = [{"path": "y.jsonl", "domain_name": "a"}]
    plan = RunPlan.of(make_config(tmp_path, sources=sources)).model_copy(update={"text_id": "text"})
    assert not is_evaluated(storage, plan, corpus, "s", before)
    student = evaluate_student(storage, plan, corpus, "s", before)
    assert is_evaluated(storage, plan, corpus, "s", student)
    assert student.on_split == before.evaluation
    assert student.evaluation is not None
    assert (student.evaluation.corpus_id, student.evaluation.split) == ("text", "candidate")
    assert student.evaluation.overall.num_sequences == text.shards[0].num_sequences
    after = read_tree(storage, layout.training_folder(student.training_id))
    assert {path: after[path] for path in own if "events" not in path} == {path: own[path] for path in own if "events" not in path}
    # Comparisons are of the text; the corpus's own split is told beside it.
    record = RunRecord(run_name="r", config={}, corpus_id=corpus.corpus_id, students={"s": student}, started_at="")
    assert record.name_text() == "held-out text from elsewhere (evaluation.sources)"
    assert compare_students(storage, record).keys() == compare_students(storage, record.on_own_split()).keys() == {"s"}
    steps = storage.list_names(layout.checkpoint_evaluations_folder(student.training_id, "text"))
    assert steps == ["step-00000002.json", "step-00000004.json"]


def test_sources_alone_are_enough_to_measure_by(tmp_path: Path) -> None:
    sources = [{"path": "y.jsonl", "domain_name": "a"}]
    config = make_config(tmp_path, sources=sources, heldout=False, tasks=["piqa"])
    assert config.evaluation.measures_losses
    with pytest.raises(ConfigError, match=r"give exactly one of `domain`"):
        make_config(tmp_path, sources=[{"path": "y.jsonl"}])


def test_their_paths_become_absolute_for_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_absolute(make_config(tmp_path, sources=[{"path": "out/*.jsonl", "domain_name": "a"}]))
    assert config.evaluation.sources[0].path == f"{tmp_path}/out/*.jsonl"
