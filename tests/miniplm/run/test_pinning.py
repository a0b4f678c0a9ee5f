"""A run on a fleet has the same ids where it is planned, on a machine without a GPU, as on its workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from miniplm import layout
from miniplm.config.run import RunConfig
from miniplm.errors import ConfigError, DamagedFileError, ModelError
from miniplm.models import devices
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.run import RunRecord, save_run
from miniplm.run import pinning, planning, students
from miniplm.run.checks import check_inputs
from miniplm.run.pinning import (
    WorkerDescription,
    describe_machine,
    find_pinned,
    find_worker,
    needs_worker,
    pin_dtypes,
    pin_run,
    save_worker,
)
from miniplm.run.plan import RunPlan
from miniplm.run.planning import identify_scorers
from miniplm.run.training_plans import plan_reference, plan_student
from miniplm.storage.root import Storage
from miniplm.training import recipe
from tests.miniplm.made_models import make_llama, save_model
from tests.miniplm.made_trainings import make_selection, make_training_corpus

TRAINING = {"steps": 4, "batch_size": 4}
WORKER = WorkerDescription(device_type="cuda", device="NVIDIA H100", worker="gpu-1", version="1")


def make_config(
    *,
    storage: str = "/data",
    teacher: dict[str, Any] | None = None,
    reference: dict[str, Any] | None = None,
    device: str = "auto",
    fan_out: str = "work-pool",
    training: dict[str, Any] | None = None,
    sources: tuple[str, ...] = ("/corpus/*.jsonl",),
    tokenizer: str = "tokenizer",
    architecture: str = "qwen-tiny",
) -> RunConfig:
    training = TRAINING | (training or {})
    return RunConfig.model_validate(
        {
            "name": "fleet",
            "storage": storage,
            "corpus": {"sources": [{"path": path, "domain_name": "all"} for path in sources], "tokenizer": tokenizer},
            "teacher": {"model": "teacher"} | (teacher or {}),
            "reference": reference or {"architecture": architecture, "training": training},
            "scoring": {"device": device},
            "students": [
                {"name": method, "architecture": architecture, "method": method, "training": training}
                for method in ("miniplm", "pretrain")
            ],
            "execution": {"fan_out": fan_out},
        }
    )


def list_dtypes(config: RunConfig) -> list[str]:
    """Of the teacher, of the reference as it scores, of its training, and of the students' trainings."""
    own = [config.reference.training.dtype] if config.reference.training else []
    return [config.teacher.dtype, config.reference.dtype, *own, *(student.training.dtype for student in config.students)]


@pytest.fixture(autouse=True)
def wide_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models so wide that bfloat16 pays; the folders that most of these tests name are not there."""
    monkeypatch.setattr(pinning, "find_width", lambda section: 576)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, CorpusManifest, str]:
    folder = tmp_path_factory.mktemp("pinning")
    storage = Storage(str(folder / "data"))
    return storage, make_training_corpus(storage), str(save_model(make_llama(), folder / "teacher"))


def list_ids(plan: RunPlan, storage: Storage, corpus: CorpusManifest) -> list[str]:
    """All ids of a run that a dtype goes into: teacher, training of the reference, trainings of the students."""
    selection = make_selection(storage, corpus, [[0, 1], [2], [3]])
    return [
        identify_scorers(plan, storage).require_teacher().model_id,
        plan_reference(plan, corpus).training_id,
        *(plan_student(plan, corpus, selection, student.name).training_id for student in plan.students),
    ]


def be_on_a_machine_with(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    def resolve(wanted: str) -> torch.device:
        return torch.device(device if wanted == "auto" else wanted)

    for module in (planning, students, recipe):
        monkeypatch.setattr(module, "resolve_device", resolve)


# --- dtypes ---


@pytest.mark.parametrize(("device_type", "dtype"), [("cpu", "float32"), ("cuda", "bfloat16"), ("mps", "bfloat16")])
def test_every_auto_dtype_becomes_what_the_workers_device_resolves_it_to(device_type: str, dtype: str) -> None:
    assert list_dtypes(make_config()) == ["auto"] * 5
    assert list_dtypes(pin_dtypes(make_config(), device_type)) == [dtype] * 5


def test_a_dtype_that_is_given_stays() -> None:
    config = make_config(teacher={"dtype": "fp8"}, training={"dtype": "float32"})
    assert list_dtypes(pin_dtypes(config, "cuda")) == ["fp8", "bfloat16", "float32", "float32", "float32"]


def test_a_given_reference_has_no_training_to_pin() -> None:
    config = make_config(reference={"model": "reference"})
    assert list_dtypes(pin_dtypes(config, "cuda")) == ["bfloat16"] * 4


def test_pinning_changes_nothing_else_and_a_second_time_nothing_at_all() -> None:
    config = make_config()
    pinned = pin_dtypes(config, "cuda")
    assert pin_dtypes(pinned, "cpu") == pinned
    assert config == make_config()
    rest = {"teacher": config.teacher, "reference": config.reference, "students": config.students}
    assert pinned.model_copy(update=rest) == config


def test_a_worker_is_asked_only_where_a_dtype_and_the_device_are_both_auto() -> None:
    given = {"dtype": "bfloat16"}
    assert needs_worker(make_config())
    assert not needs_worker(make_config(device="cuda"))
    assert needs_worker(make_config(device="cpu"))  # whether their CPU multiplies in bfloat16
    assert not needs_worker(make_config(device="cpu", teacher=given, reference={"model": "r", **given}))  # all train in float32
    assert not needs_worker(pin_dtypes(make_config(), "cuda"))
    assert needs_worker(make_config(teacher=given))
    assert needs_worker(make_config(teacher=given, training=given))  # the reference scores in auto
    assert not needs_worker(make_config(teacher=given, reference={"model": "r", **given}, training=given))
    assert needs_worker(make_config(teacher=given, reference={"model": "r", **given}))  # the students train in auto


# --- what a worker said of itself ---


def test_a_description_is_kept_in_the_runs_folder_and_found_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert find_worker(storage, "fleet") is None
    save_worker(storage, "fleet", WORKER)
    assert find_worker(storage, "fleet") == WORKER
    assert find_worker(storage, "other") is None
    assert storage.list_names("runs/fleet") == ["worker.json"]


def test_a_description_of_another_version_is_asked_for_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_json(layout.worker_description("fleet"), {"device_type": "cuda"})
    assert find_worker(storage, "fleet") is None


def test_what_an_earlier_start_has_pinned_holds(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    config = make_config(storage=str(tmp_path))
    assert find_pinned(storage, config) is config
    save_worker(storage, "fleet", WORKER)
    assert find_pinned(storage, config) == pin_dtypes(config, "cuda")


def test_a_cpu_that_multiplies_in_bfloat16_scores_in_it_and_trains_in_float32() -> None:
    assert list_dtypes(pin_dtypes(make_config(), "cpu", native_bfloat16=True)) == ["bfloat16"] * 2 + ["float32"] * 3
    # What the CPU beside a GPU multiplies in says nothing of the GPU.
    assert list_dtypes(pin_dtypes(make_config(), "cuda", native_bfloat16=True)) == ["bfloat16"] * 5
    given = make_config(teacher={"dtype": "float32"})
    assert list_dtypes(pin_dtypes(given, "cpu", native_bfloat16=True)) == ["float32", "bfloat16"] + ["float32"] * 3


@pytest.mark.parametrize(
    ("width", "architecture", "dtypes"), [(64, "qwen-104m", ["float32", "bfloat16"]), (576, "qwen-tiny", ["bfloat16", "float32"])]
)
def test_a_narrow_model_stays_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, architecture: str, dtypes: list[str]
) -> None:
    monkeypatch.undo()  # the widths of these models are looked up
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": width}))
    config = make_config(teacher={"model": str(tmp_path)}, architecture=architecture)
    assert list_dtypes(pin_dtypes(config, "cpu", native_bfloat16=True))[:2] == dtypes
    assert list_dtypes(pin_dtypes(config, "cpu"))[:2] == ["float32"] * 2
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is no configuration of a model"):
        pin_dtypes(config, "cpu", native_bfloat16=True)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_what_the_workers_cpu_multiplies_in_is_pinned_whatever_the_planners_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool, device: str
) -> None:
    storage = Storage(str(tmp_path))
    config = make_config(storage=storage.root, device=device)
    assert find_pinned(storage, config) is config, "nothing is known of the workers yet"
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda: not native)
    monkeypatch.setattr(pinning, "has_native_bfloat16", lambda: native)
    save_worker(storage, "fleet", describe_machine("cpu-1"))
    monkeypatch.setattr(pinning, "has_native_bfloat16", lambda: not native)
    expected = ["bfloat16" if native else "float32"] * 2 + ["float32"] * 3
    assert list_dtypes(find_pinned(storage, config)) == expected


def test_a_worker_of_an_earlier_version_said_nothing_of_its_cpu_and_scored_in_float32(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    content = WORKER.model_copy(update={"device_type": "cpu"}).as_json()
    del content["native_bfloat16"]
    storage.write_json(layout.worker_description("fleet"), content)
    assert list_dtypes(find_pinned(storage, make_config())) == ["float32"] * 5


@pytest.mark.parametrize(
    ("device", "dtype"), [("cuda", "bfloat16"), ("cuda:1", "bfloat16"), ("mps", "bfloat16"), ("cpu", "float32")]
)
def test_a_device_that_is_configured_decides_whatever_a_worker_said(tmp_path: Path, device: str, dtype: str) -> None:
    storage = Storage(str(tmp_path))
    save_worker(storage, "fleet", WORKER)
    assert list_dtypes(find_pinned(storage, make_config(device=device))) == [dtype] * 5


def begin(storage: Storage, monkeypatch: pytest.MonkeyPatch, device_type: str, native: bool) -> list[str]:
    """The dtypes that a run has on a machine of that kind."""
    monkeypatch.setattr(pinning, "has_native_bfloat16", lambda: native)
    monkeypatch.setattr(pinning, "resolve_device", lambda wanted: torch.device(device_type))
    monkeypatch.setattr(pinning, "describe_device", str)
    return list_dtypes(pin_run(storage, make_config(storage=storage.root, fan_out="local")))


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True)])
def test_a_run_keeps_its_dtypes_on_a_machine_with_another_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool, second: bool
) -> None:
    storage = Storage(str(tmp_path))
    begun = begin(storage, monkeypatch, "cpu", first)
    assert begun == ["bfloat16" if first else "float32"] * 2 + ["float32"] * 3
    assert begin(storage, monkeypatch, "cpu", second) == begun
    config = make_config(storage=storage.root, fan_out="local")  # for commands that only look, and another run at this root
    assert list_dtypes(pin_run(storage, config, keep=False)) == begun
    other = config.model_copy(update={"name": "other"})
    pin_run(storage, other, keep=False)
    assert not storage.exists(layout.machine_description("other"))
    assert list_dtypes(pin_run(storage, other)) == ["bfloat16" if second else "float32"] * 2 + ["float32"] * 3
    storage.write_bytes(layout.machine_description("fleet"), b"{}")
    with pytest.raises(DamagedFileError, match=r"machine\.json is no WorkerDescription"):
        begin(storage, monkeypatch, "cpu", second)


def test_a_run_begun_on_a_gpu_goes_on_in_bfloat16_on_a_cpu_and_a_given_dtype_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    assert begin(storage, monkeypatch, "cuda", False) == ["bfloat16"] * 5
    assert begin(storage, monkeypatch, "cpu", False) == ["bfloat16"] * 5
    given = make_config(storage=storage.root, fan_out="local", teacher={"dtype": "float32"})
    assert list_dtypes(pin_run(storage, given)) == ["float32"] + ["bfloat16"] * 4


def test_a_run_that_an_earlier_version_scored_in_float32_goes_on_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    entry = ModelEntry(model_id="t", source="t", dtype="float32", weights_digest="sha256:w", num_parameters=1)
    save_run(storage, RunRecord(run_name="fleet", config={}, teacher=entry, started_at="2026-11-01"))
    assert begin(storage, monkeypatch, "cpu", True) == ["float32"] * 5
    assert begin(storage, monkeypatch, "cpu", True) == ["float32"] * 5


def test_a_run_that_leaves_no_dtype_open_describes_no_machine(tmp_path: Path) -> None:
    given = {"dtype": "float32"}
    config = make_config(storage=str(tmp_path), fan_out="local", teacher=given, reference={"model": "r", **given}, training=given)
    assert pin_run(Storage(str(tmp_path)), config) is config
    assert list(tmp_path.iterdir()) == []


# --- the planner and the worker ---


def test_a_run_on_a_work_pool_is_planned_for_a_cpu_whatever_device_its_workers_have() -> None:
    config = make_config(device="cuda:3")
    assert (config.is_on_work_pool, config.planning_device) == (True, "cpu")
    local = make_config(device="cuda:3", fan_out="local")
    assert (local.is_on_work_pool, local.planning_device) == (False, "cuda:3")


def test_a_worker_does_itself_what_it_is_given() -> None:
    config = RunPlan.of(pin_dtypes(make_config(), "cuda"))
    given = config.for_worker()
    assert (given.is_on_work_pool, given.planning_device) == (False, "auto")
    assert given.model_copy(update={"execution": config.execution}) == config
    assert given.execution.stale_seconds == config.execution.stale_seconds


@pytest.mark.parametrize(
    ("device", "native", "dtype"), [("cuda", False, "bfloat16"), ("cpu", False, "float32"), ("cpu", True, "bfloat16")]
)
@pytest.mark.parametrize("configured", ["auto", "the device"])
def test_ids_are_the_same_where_a_run_is_planned_and_on_its_workers(
    made: tuple[Storage, CorpusManifest, str],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    native: bool,
    dtype: str,
    configured: str,
) -> None:
    storage, corpus, teacher = made
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda: native)
    config = make_config(storage=storage.root, teacher={"model": teacher}, device="auto" if configured == "auto" else device)
    pinned = pin_dtypes(config, device, native)
    be_on_a_machine_with(monkeypatch, "cpu")
    planned = list_ids(RunPlan.of(pinned), storage, corpus)
    be_on_a_machine_with(monkeypatch, device)
    assert list_ids(RunPlan.of(pinned).for_worker(), storage, corpus) == planned
    assert dtype in planned[0]
    # As if the whole run were on one such machine.
    monkeypatch.setattr(pinning, "has_native_bfloat16", lambda: native)
    monkeypatch.setattr(pinning, "resolve_device", lambda wanted: torch.device(device))
    monkeypatch.setattr(pinning, "describe_device", str)
    local = config.model_copy(update={"execution": config.execution.model_copy(update={"fan_out": "local"})})
    assert list_ids(RunPlan.of(pin_run(storage, local, keep=False)), storage, corpus) == planned


def test_without_pinning_planner_and_worker_would_not_agree(
    made: tuple[Storage, CorpusManifest, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, corpus, teacher = made
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda: False)
    config = make_config(storage=storage.root, teacher={"model": teacher})
    be_on_a_machine_with(monkeypatch, "cpu")
    planned = list_ids(RunPlan.of(config), storage, corpus)
    be_on_a_machine_with(monkeypatch, "cuda")
    assert not set(planned) & set(list_ids(RunPlan.of(config).for_worker(), storage, corpus))


def test_a_dtype_that_only_the_workers_have_can_be_planned_but_not_computed_here(
    made: tuple[Storage, CorpusManifest, str],
) -> None:
    storage, _, teacher = made
    plan = RunPlan.of(pin_dtypes(make_config(storage=storage.root, teacher={"model": teacher, "dtype": "fp8"}), "cuda"))
    assert "fp8" in identify_scorers(plan, storage).require_teacher().model_id
    given = plan.for_worker().model_copy(update={"scoring": plan.scoring.model_copy(update={"device": "cpu"})})
    with pytest.raises(ConfigError, match=r"dtype fp8 needs a GPU of compute capability 8.9 or higher"):
        identify_scorers(given, storage)


def test_storage_that_no_other_process_sees_is_refused_on_a_work_pool() -> None:
    with pytest.raises(ConfigError, match=r"`storage` is memory://, which no other process sees"):
        check_inputs(make_config(storage="memory://data"), Storage("memory://data"))
