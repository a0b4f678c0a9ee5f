"""Distillation by a teacher that runs along: its data, its loss over whole sequences in float64, its resume, what it refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForCausalLM

from miniplm.config.run import DistillationConfig, TrainingConfig
from miniplm.errors import TrainingError
from miniplm.models import compilation
from miniplm.models.architectures import build_model
from miniplm.models.identity import identify_model
from miniplm.progress import Progress
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.selections import SelectionManifest
from miniplm.storage.root import Storage
from miniplm.training.checkpoints import read_metrics
from miniplm.training.loop import train_model
from miniplm.training.losses import sum_language_model_loss
from miniplm.training.methods import METHODS, MethodInputs
from miniplm.training.optimization import Optimization
from miniplm.training.recipe import TrainingPlan, plan_training
from miniplm.training.teacher import compile_teacher, open_teacher, run_teacher
from tests.ends import Interrupted
from tests.miniplm.made_models import make_llama, save_model
from tests.miniplm.made_trainings import EOS, VOCAB_SIZE, make_selection, make_sequences, make_training_corpus, save_tokenizer

# Rows of the teacher's embedding: more than the tokenizer's ids, as published models have.
NUM_TEACHER_IDS = 80
DISTILLED = {"vanilla-kd": "pretrain", "miniplm+vanilla-kd": "miniplm"}


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> ModelEntry:
    return identify_model(teacher_folder, str(teacher_folder), "float32")


def make_teacher(folder: Path, num_tokens: int = VOCAB_SIZE, num_ids: int = NUM_TEACHER_IDS, **options: Any) -> Path:
    save_tokenizer(folder, num_tokens)
    return save_model(make_llama(vocab_size=num_ids, **options), folder)


def make_plan(
    corpus: CorpusManifest,
    selection: SelectionManifest | None,
    teacher: ModelEntry | None,
    method: str = "vanilla-kd",
    kl_weight: float = 0.5,
    **training: Any,
) -> TrainingPlan:
    settings = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "checkpoint_every_steps": 2, **training}
    return plan_training(
        corpus,
        method,
        "qwen-tiny",
        TrainingConfig(**settings),
        selection=selection,
        teacher=teacher,
        distillation=DistillationConfig(kl_weight=kl_weight),
        device="cpu",
    )


@pytest.mark.parametrize(("method", "data"), DISTILLED.items())
def test_it_trains_on_the_sequences_of_the_other_method(
    storage: Storage, corpus: CorpusManifest, selection: SelectionManifest, teacher: ModelEntry, method: str, data: str
) -> None:
    inputs = MethodInputs(corpus, selection, seed=3, teacher=teacher)
    shards, others = (METHODS[name].list_shards(storage, inputs) for name in (method, data))
    assert sum(shard.num_sequences for shard in shards) > 0
    for shard, other in zip(shards, others, strict=True):
        assert shard.entry == other.entry
        assert shard.load_rows is not None
        assert other.load_rows is not None
        assert shard.load_rows().tolist() == other.load_rows().tolist()
    description = METHODS[method].describe_data(inputs)
    assert description == METHODS[data].describe_data(inputs) | {
        "kl_weight": 0.5,
        "teacher": {
            "model_id": teacher.model_id,
            "weights_digest": teacher.weights_digest,
            "dtype": "float32",
            "num_parameters": teacher.num_parameters,
        },
    }


def oracle_loss(student: torch.nn.Module, teacher: torch.nn.Module, batch: list[np.ndarray], kl_weight: float) -> torch.Tensor:
    """Mean loss of one sequence after another in float64, without padding, targets after EOS left out."""
    total, num_scored = torch.zeros((), dtype=torch.float64), 0
    for sequence in batch:
        token_ids = torch.from_numpy(sequence.astype(np.int64))
        scored = token_ids[:-1] != EOS
        log_student = torch.log_softmax(student(input_ids=token_ids[None, :-1]).logits[0][scored], dim=1)
        with torch.no_grad():
            logits = teacher(input_ids=token_ids[None, :-1]).logits[0][scored]
            wanted = torch.softmax(logits[:, : log_student.shape[1]], dim=1)
        nll = torch.nn.functional.nll_loss(log_student, token_ids[1:][scored], reduction="sum")
        divergence = torch.nn.functional.kl_div(log_student, wanted, reduction="sum")
        total = total + (1 - kl_weight) * nll + kl_weight * divergence
        num_scored += int(scored.sum())
    return total / num_scored


@pytest.mark.parametrize("micro_batch_size", [1, 3, 6])
def test_loss_and_gradient_of_a_step_equal_float64_sequence_by_sequence(
    storage: Storage,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    teacher: ModelEntry,
    teacher_folder: Path,
    micro_batch_size: int,
) -> None:
    plan = make_plan(corpus, selection, teacher, kl_weight=0.3, batch_size=6, micro_batch_size=micro_batch_size, clip_norm=1e9)
    model = build_model("qwen-tiny", VOCAB_SIZE, 17, seed=1)
    loss = plan.method.make_loss(storage, plan.inputs, torch.device("cpu"))
    exact = copy.deepcopy(model).double()
    batch = [np.array(sequence, np.uint16) for sequence in make_sequences(6)]
    assert any(EOS in sequence[:-1] for sequence in batch)
    assert len({len(sequence) for sequence in batch}) > 1
    result = Optimization(model, loss, plan.config, "float32", EOS).compute_gradient(batch)
    exact_teacher = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float64)
    wanted = oracle_loss(exact, exact_teacher, batch, 0.3)
    wanted.backward()
    assert result.loss == pytest.approx(wanted.item(), abs=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_teacher_is_frozen_and_computes_in_its_own_dtype_under_autocast(
    storage: Storage, corpus: CorpusManifest, teacher_folder: Path, dtype: str
) -> None:
    entry = identify_model(teacher_folder, str(teacher_folder), dtype)
    teacher = open_teacher(storage, entry, corpus, "vanilla-kd", torch.device("cpu"))
    assert not teacher.body.training
    assert not any(parameter.requires_grad for parameter in (*teacher.body.parameters(), teacher.head.weight_VH))
    token_ids = torch.tensor([[3, 4, 5, EOS, 6]])
    with torch.autocast("cpu", torch.bfloat16):
        hidden = run_teacher(teacher, token_ids, [5])
    assert hidden.dtype == getattr(torch, dtype)
    assert not hidden.requires_grad
    exact = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float64).model(token_ids).last_hidden_state
    torch.testing.assert_close(hidden.double(), exact, atol=1e-5 if dtype == "float32" else 0.2, rtol=0)


def test_a_compiled_teacher_has_one_graph_for_each_shape_and_gives_the_same(
    storage: Storage, corpus: CorpusManifest, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(compilation.torch, "compile", partial(torch.compile, backend=counter))
    teacher = open_teacher(
        storage, identify_model(teacher_folder, str(teacher_folder), "float32"), corpus, "vanilla-kd", torch.device("cpu")
    )
    compiled = compile_teacher(teacher)
    for token_ids in (torch.tensor([[3, 4, 5, EOS, 6]]), torch.tensor([[7, 8, 9, 4, 5]]), torch.tensor([[7, 8, 9], [3, 4, 5]])):
        found, wanted = (run_teacher(model, token_ids, [token_ids.shape[1]] * len(token_ids)) for model in (compiled, teacher))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 2
    # Read a length at a time, it would be compiled for each.
    alone = replace(teacher, needs_equal_lengths=True)
    assert compile_teacher(alone) is alone


# Position encodings that depend on the length of the whole input, padding included.
_OF_LENGTH = {
    "longrope": {
        "factor": 4.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 6,
    },
    "dynamic": {"factor": 4.0},
}


@pytest.mark.parametrize("kind", ["default", "longrope", "dynamic"])
def test_what_fills_up_a_batch_does_not_reach_the_teacher(
    storage: Storage, corpus: CorpusManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = make_teacher(tmp_path / "teacher")
    content = json.loads((folder / "config.json").read_text())
    content["rope_parameters"] = {"rope_type": kind, "rope_theta": 1e4, **_OF_LENGTH.get(kind, {})}
    content |= {"max_position_embeddings": 6} if kind == "dynamic" else {}
    (folder / "config.json").write_text(json.dumps(content))
    monkeypatch.setattr(
        "miniplm.models.loading.find_max_positions", lambda config: 64
    )  # dynamic positions go beyond those of the config
    entry = identify_model(folder, str(folder), "float32")
    loaded = open_teacher(storage, entry, corpus, "vanilla-kd", torch.device("cpu"))
    lengths = [3, 9, 0, 3, 6]
    rows = torch.tensor([[(7 * row + place) % 50 + 3 if place < n else EOS for place in range(9)] for row, n in enumerate(lengths)])
    together = run_teacher(loaded, rows, lengths)
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for row, length in enumerate(lengths):
        if length:
            alone = copy.deepcopy(exact).model(rows[row : row + 1, :length]).last_hidden_state[0]
            torch.testing.assert_close(together[row, :length].double(), alone, atol=1e-4, rtol=1e-4)


def test_a_student_whose_numbers_depend_on_length_learns_the_same_in_any_micro_batches(tmp_path: Path) -> None:
    folder = make_teacher(tmp_path / "student")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(content | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **_OF_LENGTH["longrope"]}})
    )
    batch = [np.array(sequence, np.uint16) for sequence in make_sequences(6)]
    losses = []
    for micro_batch_size in (1, 6):
        config = TrainingConfig(steps=1, batch_size=6, micro_batch_size=micro_batch_size)
        model = build_model(str(folder), VOCAB_SIZE, 17, seed=1)
        optimization = Optimization(model, sum_language_model_loss, config, "float32", EOS, max_tokens=17)
        losses.append(optimization.compute_gradient(batch))
    assert len({len(sequence) for sequence in batch}) > 1
    assert losses[0].gradient_norm == pytest.approx(losses[1].gradient_norm, rel=1e-4)
    assert losses[0].loss == pytest.approx(losses[1].loss, rel=1e-5)


def train(plan: TrainingPlan, storage: Storage, interrupted_at: int | None = None) -> tuple[str, list[tuple[float, float]]]:
    def on_progress(progress: Progress) -> None:
        if progress.done == interrupted_at:
            raise Interrupted

    manifest = train_model(storage, plan, on_progress)
    metrics = read_metrics(storage, plan.training_id, manifest.num_steps)
    return manifest.weights_digest, [(row.loss, row.gradient_norm) for row in metrics]


@pytest.mark.parametrize("method", DISTILLED)
def test_interrupted_training_gives_the_losses_and_weights_of_an_undisturbed_one(
    tmp_path: Path, teacher: ModelEntry, method: str
) -> None:
    results = []
    for name, step in (("undisturbed", None), ("interrupted", 3)):
        storage = Storage(str(tmp_path / name))
        corpus = make_training_corpus(storage)
        plan = make_plan(corpus, make_selection(storage, corpus, ([0, 3, 6], [2], [8, 1])), teacher, method)
        assert plan.training_id.startswith(f"{method.replace('+', '-')}-qwen-tiny-")
        if step is not None:
            with pytest.raises(Interrupted):
                train(plan, storage, step)
        results.append(train(plan, storage))
    assert results[0] == results[1]


def test_a_student_comes_nearer_to_its_teacher_and_the_teacher_is_not_trained_or_kept(
    storage: Storage, corpus: CorpusManifest, selection: SelectionManifest, teacher: ModelEntry, teacher_folder: Path
) -> None:
    weights = (teacher_folder / "model.safetensors").read_bytes()
    plan = make_plan(corpus, selection, teacher, kl_weight=1.0, steps=30, checkpoint_every_steps=100)
    manifest = train_model(storage, plan)
    losses = [row.loss for row in read_metrics(storage, plan.training_id, 30)]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    student = AutoModelForCausalLM.from_pretrained(storage.path(manifest.checkpoint))
    assert sum(parameter.numel() for parameter in student.parameters()) == manifest.num_parameters
    assert student.config.model_type == "qwen2"
    assert (teacher_folder / "model.safetensors").read_bytes() == weights
    moments = Path(storage.path(manifest.checkpoint)) / "optimizer.safetensors"
    assert moments.stat().st_size < 2.1 * 4 * manifest.num_parameters


def test_teacher_and_weight_change_the_id_and_only_where_they_are_used(
    tmp_path: Path, corpus: CorpusManifest, selection: SelectionManifest, teacher: ModelEntry, teacher_folder: Path
) -> None:
    folder = make_teacher(tmp_path / "other", seed=1)
    other = identify_model(folder, str(folder), "float32")
    low = identify_model(teacher_folder, str(teacher_folder), "bfloat16")
    plans = [
        make_plan(corpus, selection, teacher),
        make_plan(corpus, selection, teacher, kl_weight=0.4),
        make_plan(corpus, selection, other),
        make_plan(corpus, selection, low),
        make_plan(corpus, selection, teacher, "miniplm+vanilla-kd"),
        make_plan(corpus, selection, None, "pretrain"),
    ]
    assert len({plan.training_id for plan in plans}) == len(plans)
    assert make_plan(corpus, selection, other, "pretrain", 0.4).training_id == plans[-1].training_id


@pytest.mark.parametrize("method", DISTILLED)
def test_it_is_refused_without_a_teacher_or_a_selection(
    corpus: CorpusManifest, selection: SelectionManifest, teacher: ModelEntry, method: str
) -> None:
    with pytest.raises(TrainingError, match=f"the method '{method.replace('+', '.')}' needs the run's teacher"):
        make_plan(corpus, selection, None, method)
    with pytest.raises(TrainingError, match=f"the method '{method.replace('+', '.')}' trains on a selection"):
        make_plan(corpus, None, teacher, method)


@pytest.mark.parametrize(
    ("num_tokens", "num_ids", "message"),
    [
        (VOCAB_SIZE, 63, r"has a vocabulary of 63 ids, .*ids up to 63; .*or use method miniplm or seqkd"),
        (60, NUM_TEACHER_IDS, r"another tokenizer than corpus made .*id by id; .*or use method miniplm or seqkd"),
    ],
)
def test_a_teacher_of_other_tokens_is_refused_before_training(
    tmp_path: Path, corpus: CorpusManifest, selection: SelectionManifest, num_tokens: int, num_ids: int, message: str
) -> None:
    folder = make_teacher(tmp_path / "other", num_tokens, num_ids)
    with pytest.raises(TrainingError, match=message):
        make_plan(corpus, selection, identify_model(folder, str(folder), "float32"))


def test_a_teacher_whose_tokenizer_lacks_the_separator_is_refused(
    tmp_path: Path, corpus: CorpusManifest, selection: SelectionManifest
) -> None:
    folder = make_teacher(tmp_path / "other")
    content = json.loads((folder / "tokenizer.json").read_text().replace("<eos>", "<end>"))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text().replace("<eos>", "<end>"))
    with pytest.raises(TrainingError, match=r"vanilla-kd: the teacher .*other has another tokenizer than corpus made"):
        make_plan(corpus, selection, identify_model(folder, str(folder), "float32"))


def test_a_teacher_with_too_few_positions_is_refused(
    tmp_path: Path, storage: Storage, corpus: CorpusManifest, selection: SelectionManifest
) -> None:
    folder = make_teacher(tmp_path / "short", max_positions=15)
    plan = make_plan(corpus, selection, identify_model(folder, str(folder), "float32"))
    with pytest.raises(TrainingError, match=r"has 15 positions, and the sequences of corpus made have 16"):
        train_model(storage, plan)


def test_a_teacher_trained_at_the_storage_root_is_read_from_there(
    storage: Storage, corpus: CorpusManifest, selection: SelectionManifest, teacher: ModelEntry, teacher_folder: Path
) -> None:
    stored = teacher.model_copy(update={"stored": True, "source": "elsewhere"})
    for path in teacher_folder.iterdir():
        storage.write_bytes(f"models/{stored.model_id}/{path.name}", path.read_bytes())
    results = []
    for entry in (teacher, stored):
        plan = make_plan(corpus, selection, entry)
        loss = plan.method.make_loss(storage, plan.inputs, torch.device("cpu"))
        model = build_model("qwen-tiny", VOCAB_SIZE, 17, seed=1)
        batch = [np.array(sequence, np.uint16) for sequence in make_sequences(4)]
        results.append(Optimization(model, loss, plan.config, "float32", EOS).compute_gradient(batch))
    assert results[0] == results[1]
