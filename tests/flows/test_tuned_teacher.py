"""A run without a large model: its teacher is the reference, tuned on target text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from miniplm.corpus.identity import plan_corpus
from miniplm.corpus.reader import find_corpus
from miniplm.errors import ConfigError, CorpusError
from miniplm.models.opening import open_causal_model
from miniplm.records.run import load_run
from miniplm.run import stages, status
from miniplm.run.model_entries import require_reference, with_teacher
from miniplm.run.plan import RunPlan
from miniplm.run.resolution import resolve
from miniplm.storage.root import Storage
from tests.command_line import run_miniplm
from tests.tiny_runs import FinishedRun, make_documents, write_jsonl

TRAINING = {"steps": 24, "batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 2, "checkpoint_every_steps": 24}


def write_config(run: FinishedRun, folder: Path, **changes: Any) -> Path:
    """The finished run's configuration with a teacher that is tuned on one of its domains, and a copy of its data."""
    config = yaml.safe_load(run.config.read_text())
    verse = [document for document in make_documents() if document["meta"]["domain"] == "verse"]
    write_jsonl(folder / "target" / "verse.jsonl", verse)
    tuned_on = {"sources": [{"path": str(folder / "target" / "*.jsonl"), "domain_name": "verse"}], "training": TRAINING} | changes
    shutil.copytree(run.data, folder / "data", dirs_exist_ok=True)
    config |= {
        "name": "tuned",
        "storage": str(folder / "data"),
        "teacher": {"dtype": "float32", "tuned_on": tuned_on},
        "students": config["students"][:1],
    }
    path = folder / "tuned.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def read_plan(path: Path, *overrides: str) -> tuple[Storage, RunPlan]:
    from miniplm.config.files import load_config

    plan = resolve(load_config(str(path), overrides))
    storage = Storage(plan.storage)
    corpus = find_corpus(storage, plan_corpus(storage, plan.corpus, plan.tokenizer).corpus_id)
    return storage, with_teacher(storage, plan, corpus)


def test_the_selection_leans_towards_the_target(finished_run: FinishedRun, prefect_server: dict[str, str], tmp_path: Path) -> None:
    path = write_config(finished_run, tmp_path)
    result = run_miniplm("run", str(path), prefect=prefect_server)
    assert result.returncode == 0, result.stderr
    storage, plan = read_plan(path)
    record = load_run(storage, "tuned")
    names = [stage.name for stage in record.stages]
    assert names[:4] == ["prepare", "train reference", "tune teacher", "score teacher"]
    assert names.count("train reference") == 1
    teacher, reference = record.teacher, record.reference
    assert teacher is not None
    assert reference is not None
    assert (teacher, teacher.num_parameters) == (plan.teacher_entry, reference.num_parameters)
    corpus = status.require_corpus(storage, plan)
    selection = status.require_selection(storage, plan, corpus, reference)
    shares = {name: domain.num_selected / domain.num_candidates for name, domain in selection.domains.items()}
    assert shares["verse"] > 1.5 * max(share for name, share in shares.items() if name != "verse"), shares
    assert status.check_run(storage, plan).complete

    # Other target text makes another teacher and another selection; the reference and its scores stay.
    write_jsonl(tmp_path / "target" / "more.jsonl", make_documents(20, seed=5))
    other = read_plan(path)[1]
    assert other.teacher_entry is None
    prepared, _ = stages.prepare(storage, other)
    known, stage = stages.provide_teacher(storage, other, prepared, require_reference(storage, other, prepared))
    assert not stage.reused
    assert known.teacher_entry is not None
    assert known.teacher_entry.model_id != teacher.model_id
    result = run_miniplm("plan", str(path), "--json", prefect=prefect_server)
    assert [stage["name"] for stage in json.loads(result.stdout)["stages"]][:2] == ["score reference", "score teacher"]


def test_tuning_starts_from_the_weights_of_the_reference(finished_run: FinishedRun, tmp_path: Path) -> None:
    import torch

    from miniplm.run.outside_texts import prepare_target
    from miniplm.run.training_plans import plan_teacher
    from miniplm.training.start import build_start

    storage, plan = read_plan(write_config(finished_run, tmp_path))
    corpus = status.require_corpus(storage, plan)
    reference = require_reference(storage, plan, corpus)
    prepare_target(storage, plan)
    start = build_start(storage, plan_teacher(storage, plan, reference))
    trained, _ = open_causal_model(storage, reference, torch.device("cpu"))
    for (name, weight), own in zip(start.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(weight, own), name


def test_a_target_shorter_than_a_sequence_is_refused(finished_run: FinishedRun, tmp_path: Path) -> None:
    path = write_config(finished_run, tmp_path)
    write_jsonl(tmp_path / "target" / "verse.jsonl", [{"text": "too short"}])
    storage, plan = read_plan(path)
    corpus = status.require_corpus(storage, plan)
    with pytest.raises(CorpusError, match=r"teacher\.tuned_on\.sources: .* less than one sequence of 65"):
        stages.provide_teacher(storage, plan, corpus, require_reference(storage, plan, corpus))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"dtype": "float32"}, "exactly one of `model`"),
        ({"model": "a/b", "tuned_on": {"sources": [{"path": "x", "domain_name": "y"}], "training": TRAINING}}, "exactly one of"),
        (
            {"revision": "main", "tuned_on": {"sources": [{"path": "x", "domain_name": "y"}], "training": TRAINING}},
            "go with `model`",
        ),
        ({"tuned_on": {"sources": [], "training": TRAINING}}, "at least 1 item"),
    ],
)
def test_a_teacher_is_given_or_tuned(finished_run: FinishedRun, tmp_path: Path, teacher: dict[str, Any], message: str) -> None:
    path = write_config(finished_run, tmp_path)
    config = yaml.safe_load(path.read_text()) | {"teacher": teacher}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=message):
        read_plan(path)


def test_stage_commands_say_that_the_teacher_is_to_be_tuned(
    finished_run: FinishedRun, prefect_server: dict[str, str], tmp_path: Path
) -> None:
    path = write_config(finished_run, tmp_path)
    result = run_miniplm("score", str(path), "--model", "teacher", prefect=prefect_server)
    assert result.returncode == 2
    assert "run `miniplm tune-teacher CONFIG`" in " ".join(result.stderr.split())
    result = run_miniplm("tune-teacher", str(finished_run.config), prefect=prefect_server)
    assert result.returncode == 2
    assert "nothing to tune" in " ".join(result.stderr.split())
