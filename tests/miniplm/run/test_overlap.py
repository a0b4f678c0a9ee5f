"""Copies and evaluation texts of a run: told beside its selection, and left out of it where the rule says so, by sequences and documents."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.config.files import check_config
from miniplm.config.what_if import parse_grid
from miniplm.corpus.preparation import prepare_corpus
from miniplm.errors import ConfigError, EvaluationError
from miniplm.overlap.exclusions import CONTAMINATED, COPY
from miniplm.overlap.words import list_words
from miniplm.records.manifests import CorpusManifest
from miniplm.report.overlap import render_overlap
from miniplm.report.what_if import render_what_if
from miniplm.run import overlap as run_overlap
from miniplm.run import stages
from miniplm.run.overlap import find_overlap_summary, list_sources, name_selection
from miniplm.run.plan import RunPlan
from miniplm.run.what_if import try_grid
from miniplm.storage.root import Storage
from tests.miniplm.corpus_fixtures import write_jsonl
from tests.miniplm.document_scores import write_document_scores
from tests.miniplm.report_fixtures import REFERENCE, TEACHER

TASK = "task: quiz\ndataset_path: json\ndataset_kwargs: {data_files: {validation: quiz.jsonl}}\n"


def make_texts(num: int = 60) -> list[str]:
    """Texts of 40 words; the last ten are copies of the first ten, every second one with its last word changed."""
    rng = random.Random(0)
    texts = [" ".join(f"w{rng.randrange(900)}" for _ in range(40)) for _ in range(num)]
    return texts + [text if number % 2 else f"{text.rsplit(' ', 1)[0]} end" for number, text in enumerate(texts[:10])]


class Made:
    """A scored run whose held-out documents are near copies of some candidates."""

    def __init__(self, folder: Path, tokenizer: str) -> None:
        self.folder, self.texts = folder, make_texts()
        write_jsonl(folder / "in.jsonl", [{"text": text, "domain": "ab"[n % 2]} for n, text in enumerate(self.texts)])
        write_jsonl(
            folder / "out.jsonl",
            [{"text": f"{' '.join(self.texts[n].split()[:20])} and so on"} for n in (20, 21)] + [{"text": "filler. " * 90}],
        )
        (folder / "tasks").mkdir()
        (folder / "tasks" / "quiz.yaml").write_text(TASK)
        (folder / "tasks" / "quiz.jsonl").write_text("{}\n")
        self.storage = Storage(str(folder / "data"))
        plan = self.plan()
        self.corpus: CorpusManifest = prepare_corpus(self.storage, plan.corpus)
        stages.prepare(self.storage, self.plan(contamination="drop"))
        for number, model in enumerate((TEACHER, REFERENCE)):
            write_document_scores(self.storage, self.corpus, model.model_id, seed=number * 5)

    def plan(self, evaluation: dict[str, Any] | None = None, **selection: Any) -> RunPlan:
        content = {
            "name": "r",
            "storage": str(self.folder / "data"),
            "corpus": {
                "sources": [{"path": str(self.folder / "in.jsonl"), "domain": "domain"}],
                "tokenizer": TOKENIZERS[0],
                "sequence_length": 250,
                "sequences_per_shard": 8,
                "splits": {"reference": 0, "heldout": 0},
            },
            "teacher": {"model": "t"},
            "reference": {"model": "t"},
            "selection": {"ratio": 1.0, **selection},
            "evaluation": evaluation
            or {"sources": [{"path": str(self.folder / "out.jsonl"), "domain_name": "b"}], "allow_overlap": True},
        }
        return RunPlan.of(check_config(content, "test"), teacher_entry=TEACHER, reference_entry=REFERENCE)

    def select(self, **selection: Any) -> Any:
        return stages.select(self.storage, self.plan(**selection), self.corpus, REFERENCE)[0]

    def read_ids(self, manifest: Any, column: str) -> set[int]:
        paths = [self.storage.path(layout.selection_shard(manifest.selection_id, shard.shard_index)) for shard in manifest.shards]
        return {one for path in paths for one in pq.read_table(path)[column].to_pylist()}


TOKENIZERS: list[str] = []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Made:
    TOKENIZERS[:] = [tokenizer]
    return Made(tmp_path_factory.mktemp("overlap"), tokenizer)


def test_a_selection_has_its_copies_and_evaluation_texts_beside_it(made: Made) -> None:
    manifest = made.select()
    summary = find_overlap_summary(made.storage, manifest.selection_id)
    assert summary.copies is not None
    assert summary.contamination is not None
    assert (summary.copies.candidates.num_exact, summary.copies.candidates.num_near) == (10, 10)
    assert summary.copies.kept == summary.copies.candidates
    assert {group.num_kept for group in summary.copies.groups} == {2}
    assert list_words(summary.copies.groups[0].text)[0] == list_words(made.texts[0])[0]
    (source,) = summary.contamination.sources
    assert (source.name, source.num_items, source.num_found, source.num_found_kept) == ("evaluation.sources", 3, 2, 2)
    assert {text.document_id for text in summary.contamination.texts} == {20, 21}
    assert {text.num_words for text in summary.contamination.texts} == {20}
    page = render_overlap(summary, {})
    assert "Read once more" in page
    assert "evaluation.sources" in page


def test_documents_with_better_copies_and_with_evaluation_texts_are_left_out(made: Made) -> None:
    manifest = made.select(unit="document", duplicates="best", contamination="drop")
    kept = made.read_ids(manifest, "document_id")
    assert manifest.left_out == {CONTAMINATED: 2, COPY: 10}
    assert not kept & {20, 21}
    assert all(len({number, 60 + number} & kept) == 1 for number in range(10))
    assert len(kept) == 70 - 12
    scores = {}
    everything = made.select(unit="document")
    for shard in everything.shards:
        table = pq.read_table(made.storage.path(layout.selection_shard(everything.selection_id, shard.shard_index)))
        scores |= dict(zip(table["document_id"].to_pylist(), table["difference_score"].to_pylist(), strict=True))
    for number in range(10):
        best = min((number, 60 + number), key=lambda one: (-scores[one], one))
        assert best in kept
    summary = find_overlap_summary(made.storage, manifest.selection_id)
    assert summary.copies is not None
    assert summary.copies.kept.repeated_tokens == 0


def test_sequences_with_evaluation_texts_are_left_out(made: Made) -> None:
    manifest, everything = made.select(contamination="drop"), made.select()
    dropped = made.read_ids(everything, "sequence_id") - made.read_ids(manifest, "sequence_id")
    summary = find_overlap_summary(made.storage, everything.selection_id)
    assert summary.contamination is not None
    assert dropped == {text.sequence_id for text in summary.contamination.texts}
    assert manifest.left_out == {CONTAMINATED: len(dropped)}


def test_the_id_follows_the_texts_that_are_looked_for(made: Made) -> None:
    tasks = {
        "tasks": ["quiz"],
        "task_folder": str(made.folder / "tasks"),
        **made.plan().evaluation.model_dump(mode="json", include={"sources"}),
    }
    plan, other = made.plan(contamination="drop"), made.plan(tasks, contamination="drop")
    names = [name_selection(made.storage, one, made.corpus, REFERENCE) for one in (plan, other, plan)]
    assert names[0] == names[2] != names[1]
    assert [source.name for source in list_sources(made.storage, other, made.corpus)] == ["task quiz", "evaluation.sources"]
    (made.folder / "tasks" / "quiz.jsonl").write_text('{"question": "?"}\n')
    assert name_selection(made.storage, other, made.corpus, REFERENCE) != names[1]


def test_a_run_without_any_text_to_look_for_is_refused_at_once(made: Made) -> None:
    with pytest.raises(ConfigError, match=r"contamination is drop, but there is no text to look for: name evaluation\.tasks"):
        made.plan({"heldout": True}, contamination="drop")


def test_a_task_that_cannot_be_loaded_is_told_and_not_tried_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fail(*_: Any) -> None:
        tried.append(1)
        raise EvaluationError("task quiz cannot be loaded: no hub here")

    monkeypatch.setattr(run_overlap, "measure_contamination", fail)
    for _ in range(2):
        manifest = made.select(ratio=0.7)
    assert tried == [1]
    summary = find_overlap_summary(made.storage, manifest.selection_id)
    assert summary.problem == "task quiz cannot be loaded: no hub here"
    assert summary.problem in render_overlap(summary, {})


def test_a_grid_over_documents_is_what_would_be_selected(made: Made) -> None:
    grid = "ratio=0.2|0.8,duplicates=keep|best"
    plan = made.plan(unit="document")
    told = try_grid(made.storage, plan, made.corpus, REFERENCE, grid)
    for outcome, one in list(zip(told.outcomes, parse_grid(grid, plan.selection), strict=True))[:2]:
        manifest = made.select(unit="document", **one.settings)
        assert (outcome.num_selected, outcome.num_selected_tokens) == (manifest.num_selected, manifest.num_selected_tokens)
        assert outcome.num_shared == manifest.num_selected
    page = render_what_if(told)
    assert page.count("<svg") == 2
    assert "duplicates best" in page
