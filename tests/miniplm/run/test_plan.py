"""The plan of a run: made once, found again while nothing that it was made of has changed, and nothing read twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miniplm import layout
from miniplm.config import files as config_files
from miniplm.config.files import load_config
from miniplm.errors import ModelError, TokenizerError
from miniplm.records.manifests import CorpusManifest
from miniplm.records.run import RunRecord, save_run
from miniplm.records.selections import SelectionManifest
from miniplm.run import checks as inputs
from miniplm.run import pinning, planning, resolution, stages
from miniplm.run.plan import RunPlan, find_plan
from miniplm.run.resolution import resolve
from miniplm.run.scoring_models import open_scorer
from miniplm.run.status import check_run, provide_record
from miniplm.run.training_plans import describe_training
from miniplm.run.trainings import know_student
from miniplm.scoring.shards import score_shard
from miniplm.storage import root as storage
from miniplm.storage.root import Storage, digest_content
from tests.tiny_runs import make_tiny_run


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what this process knows, as another one would not know it."""

    def forget() -> None:
        monkeypatch.setattr(resolution, "_plans", {})

    forget()
    return forget


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return make_tiny_run(tmp_path, sequences_per_shard=256)


def test_a_plan_is_kept_and_holds_until_something_that_it_was_made_of_changes(
    config: Path, new_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[RunPlan] = []
    make_plan = planning.make_plan
    monkeypatch.setattr(planning, "make_plan", lambda *given: made.append(make_plan(*given)) or made[-1])

    def resolve_anew(*overrides: str) -> RunPlan:
        new_process()
        return resolve(load_config(str(config), overrides))

    plan = resolve_anew()
    assert find_plan(Storage(plan.storage), "tiny") == plan == resolve_anew()
    assert len(made) == 1
    # How sequences are selected is no question of what was looked at.
    assert resolve_anew("selection.ratio=0.25").selection.ratio == 0.25
    assert len(made) == 1
    resolve_anew("students.0.training.steps=7")
    assert len(made) == 2
    resolve_anew()
    monkeypatch.setattr(resolution, "_describe_program", lambda: ["another version"])
    resolve_anew()
    assert len(made) == 4
    (config.parent / "teacher" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="truncated or no safetensors file"):
        resolve_anew()


def test_what_was_written_to_just_now_is_looked_at_again_by_the_next_process(config: Path) -> None:
    (config.parent / "teacher" / "config.json").touch()
    plan = resolve(load_config(str(config)))
    assert plan.key == ""
    assert find_plan(Storage(plan.storage), "tiny") is None


def test_a_look_keeps_nothing_and_a_kept_plan_of_another_version_is_none(config: Path) -> None:
    root = Storage(load_config(str(config)).storage)
    resolve(load_config(str(config)), checks=False)
    assert find_plan(root, "tiny") is None
    resolve(load_config(str(config)))
    content = root.read_json(layout.run_plan("tiny"))
    changed = {name: value for name, value in content.items() if name not in ("corpus", "digest")}
    root.write_json(layout.run_plan("tiny"), changed | {"digest": digest_content(changed)})
    assert find_plan(root, "tiny") is None


def test_a_kept_plan_that_is_not_as_it_was_written_is_none(config: Path) -> None:
    plan = resolve(load_config(str(config)))
    root, path = Storage(plan.storage), layout.run_plan("tiny")
    content, written = root.read_json(path), root.read_bytes(path)
    for other in (b"", b"null", b"[]", b"[" * 100_000, written[:100], json.dumps(content | {"students": []}).encode()):
        root.write_bytes(path, other)
        assert find_plan(root, "tiny") is None
    root.write_bytes(path, written)
    assert find_plan(root, "tiny") == plan


def test_a_known_training_is_that_of_its_own_draw(config: Path) -> None:
    plans = {seed: resolve(load_config(str(config), [f"selection.seed={seed}"])) for seed in (0, 1)}
    corpus, _ = stages.prepare(Storage(plans[0].storage), plans[0])
    selection = SelectionManifest(
        selection_id="mean-0.5-of-nothing",
        corpus_id=corpus.corpus_id,
        teacher_id="",
        reference_id="",
        ratio=0.5,
        score="mean",
        num_candidates=2,
        num_selected=1,
        num_selected_tokens=64,
        num_negative=0,
        threshold=0.0,
        domains={},
        shards=(),
    )
    # A record that was made of what stages left is made anew as they go on.
    root = Storage(plans[0].storage)
    record = provide_record(root, load_config(str(config)))
    assert (record.corpus_id, record.reference) == (corpus.corpus_id, None)
    save_run(root, record.model_copy(update={"corpus_id": None}))
    assert provide_record(root, load_config(str(config))) == record
    drawn, other = (know_student(root, plans[seed], corpus, selection, "pretrain") for seed in (0, 1))
    assert drawn.training_id == describe_training(root, plans[0], corpus, selection, "pretrain").training_id != other.training_id
    assert plans[0].trainings is plans[1].trainings
    # Of a run that is only looked at nothing is kept, what is learned of it included.
    kept = find_plan(Storage(plans[0].storage), "tiny")
    looked_at = resolve(load_config(str(config), ["selection.seed=2"]), checks=False)
    know_student(root, looked_at, corpus, selection, "pretrain")
    assert find_plan(Storage(plans[0].storage), "tiny") == kept


def test_dtypes_are_explicit_and_the_record_keeps_the_configuration_as_it_was_given(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "has_native_bfloat16", lambda: False)
    plan = resolve(load_config(str(config), ["scoring.device=cpu", "teacher.dtype=auto"]))
    assert (plan.teacher.dtype, plan.reference.dtype, plan.students[0].training.dtype) == ("float32",) * 3
    assert plan.config["teacher"]["dtype"] == "auto"
    assert plan.require_teacher().dtype == "float32"
    assert RunPlan.model_validate_json(plan.model_dump_json()) == plan


def test_a_worker_does_itself_what_it_is_given_and_writes_no_plan(config: Path) -> None:
    plan = resolve(load_config(str(config), ["execution.fan_out=work-pool"]), checks=False)
    given = plan.for_worker()
    assert (plan.is_on_work_pool, given.is_on_work_pool, given.key) == (True, False, "")


def test_in_a_whole_run_every_file_is_read_once(
    config: Path, new_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def count(module: Any, name: str, of: Callable[..., str]) -> None:
        function = getattr(module, name)

        def counted(*given: Any, **options: Any) -> Any:
            calls[of(*given)] += 1
            return function(*given, **options)

        monkeypatch.setattr(module, name, counted)

    count(config_files, "check_config", lambda *_: "check_config")
    count(inputs, "check_finite_weights", lambda *_: "teacher weights are finite")
    monkeypatch.setattr(planning, "check_inputs", inputs.check_inputs)
    count(storage, "digest_stream", lambda file: f"digest of {getattr(file, 'name', 'x')}")
    count(CorpusManifest, "model_validate", lambda *_: "corpus manifest")
    monkeypatch.setattr(storage, "_TICK_SECONDS", 0.0)

    plan = resolve(load_config(str(config)))
    root = Storage(plan.storage)
    corpus, _ = stages.prepare(root, plan)
    reference, _ = stages.provide_reference(root, plan, corpus)
    for entry in (plan.require_teacher(), reference):
        scorer = open_scorer(root, entry, plan.scoring, corpus.sequence_length)
        for shard in corpus.split_shards("candidate"):
            score_shard(root, corpus, shard, entry, scorer)
    selection, _ = stages.select(root, plan, corpus, reference)
    for student in plan.students:
        record, _ = stages.train(root, plan, corpus, selection, student.name)
        stages.evaluate(root, plan, corpus, student.name, record)
    check_run(root, resolve(load_config(str(config))))

    weights = config.parent / "teacher" / "model.safetensors"
    wanted = {"check_config": 2, "teacher weights are finite": 1, f"digest of {weights}": 1}
    assert {name: calls[name] for name in wanted} == wanted, "a configuration is checked as often as its file is loaded"
    too_often = {name: number for name, number in calls.items() if number > 1 and "/data/" in name and "/unfinished/" not in name}
    assert not too_often


def test_a_run_is_looked_at_though_its_models_are_gone(config: Path) -> None:
    run = load_config(str(config))
    root, record = Storage(run.storage), RunRecord(run_name="tiny", config={}, started_at="")
    save_run(root, record)
    shutil.rmtree(config.parent / "teacher")
    assert provide_record(root, run) == record
    with pytest.raises(TokenizerError, match="there is no tokenizer folder"):
        resolve(run, checks=False)


def test_what_reads_only_manifests_imports_no_torch() -> None:
    modules = (
        "miniplm.run.status",
        "miniplm.run.inspection",
        "miniplm.run.stages",
        "flows.cli.app",
        "flows.cli.tables",
        "flows.cli.results",
    )
    program = (
        f"import sys, {', '.join(modules)}; print([name for name in ('torch', 'transformers', 'prefect') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
