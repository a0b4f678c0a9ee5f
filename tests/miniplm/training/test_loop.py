"""A training from plan to manifest: killed and resumed it is the training that was not disturbed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

from miniplm import layout
from miniplm.config.run import TrainingConfig
from miniplm.corpus.reader import load_corpus
from miniplm.errors import BusyError, TrainingError
from miniplm.models.nll import scale_gradient
from miniplm.progress import Progress
from miniplm.records.manifests import CheckpointMetrics, TrainingManifest
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage
from miniplm.training.checkpoints import find_checkpoint, list_checkpoint_steps, read_metrics
from miniplm.training.loop import find_training, train_model
from miniplm.training.losses import LossFunction, sum_language_model_loss
from miniplm.training.methods import METHODS, MethodInputs
from miniplm.training.methods.reference import ReferenceMethod
from miniplm.training.recipe import TrainingPlan, plan_training
from tests.ends import Interrupted, flip_byte
from tests.forks import FORKS
from tests.miniplm.made_trainings import VOCAB_SIZE, make_plan, make_selection, make_training_corpus


def make_storage(folder: Path) -> Storage:
    return Storage(str(folder))


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.done == step:
            raise Interrupted

    return on_progress


def history(storage: Storage, manifest: TrainingManifest) -> list[CheckpointMetrics]:
    """The metrics of all steps but their time."""
    return [row.model_copy(update={"seconds": 0.0}) for row in read_metrics(storage, manifest.training_id, manifest.num_steps)]


def train_undisturbed(folder: Path, **training: Any) -> tuple[TrainingManifest, list[CheckpointMetrics]]:
    storage = make_storage(folder)
    manifest = train_model(storage, make_plan(make_training_corpus(storage), **training))
    return manifest, history(storage, manifest)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a corpus and the training of `make_plan`, finished: tests read it, or change a copy."""
    root = tmp_path_factory.mktemp("undisturbed")
    train_undisturbed(root)
    return root


def copy_root(root: Path, target: Path) -> tuple[Storage, TrainingPlan, TrainingManifest]:
    """A copy of `undisturbed`, its plan and its manifest."""
    shutil.copytree(root, target, dirs_exist_ok=True)
    return read_root(target)


def read_root(root: Path) -> tuple[Storage, TrainingPlan, TrainingManifest]:
    storage = make_storage(root)
    plan = make_plan(load_corpus(storage, "made"))
    manifest = find_training(storage, plan.training_id)
    assert manifest is not None
    return storage, plan, manifest


def copy_corpus(root: Path, target: Path) -> Storage:
    """A root with the corpus of `undisturbed` alone."""
    shutil.copytree(root / "corpora", target / "corpora")
    return make_storage(target)


def test_training_learns_and_its_manifest_tells_what_was_done(tmp_path: Path) -> None:
    storage = make_storage(tmp_path)
    corpus = make_training_corpus(storage)
    moments: list[Progress] = []
    plan = make_plan(corpus, epochs=9, learning_rate=1e-2)
    manifest = train_model(storage, plan, moments.append)
    rows = history(storage, manifest)
    reference = corpus.split_shards("reference")[0]
    assert (manifest.num_steps, manifest.num_sequences, manifest.num_skipped_steps) == (23, 90, 0)
    assert manifest.num_tokens == 9 * reference.num_tokens
    assert [row.step for row in rows] == list(range(1, 24))
    assert rows[0].loss == pytest.approx(np.log(VOCAB_SIZE), abs=0.2)
    assert np.mean([row.loss for row in rows[-5:]]) < 0.6 * rows[0].loss
    assert manifest.final_loss == rows[-1].loss
    assert manifest.training_id == plan.training_id
    assert manifest.recipe == plan.recipe.as_json()
    assert {moment.key for moment in moments} == {f"train {plan.training_id}"}
    assert [moment.done for moment in moments] == list(range(24))
    assert {(moment.total, moment.unit) for moment in moments} == {(23, "steps")}
    assert moments[-1].detail.startswith(f"loss {rows[-1].loss:.3f}, ")


def test_final_checkpoint_is_a_transformers_directory(undisturbed: Path) -> None:
    storage, _, manifest = read_root(undisturbed)
    folder = storage.path(manifest.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest.num_parameters
    assert model.generation_config.eos_token_id == 0
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    assert [path.name for path in Path(folder).rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")] == []


@pytest.mark.parametrize("step", range(7))
def test_interrupted_after_any_step_gives_the_losses_and_weights_of_an_undisturbed_run(
    undisturbed: Path, tmp_path: Path, step: int
) -> None:
    whole, plan, wanted = read_root(undisturbed)
    storage = copy_corpus(undisturbed, tmp_path)
    with pytest.raises(Interrupted):
        train_model(storage, plan, interrupt_at(step))
    done: list[float] = []
    torch.manual_seed(step)  # the state of the global generator is of no account
    manifest = train_model(storage, plan, lambda progress: done.append(progress.done))
    assert done[0] == step - step % 2, "goes on at the last checkpoint"
    assert manifest.weights_digest == wanted.weights_digest
    assert history(storage, manifest) == history(whole, wanted)


def train_until_killed(root: str, num_published: int) -> None:
    """The body of a process: it is killed when it is about to publish one file more than so many."""
    original, left = os.replace, num_published

    def replace(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, target)

    os.replace = replace
    storage = Storage(root)
    training = TrainingConfig(steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=2, checkpoint_every_steps=2)
    train_model(storage, plan_training(load_corpus(storage, "made"), "reference", "qwen-tiny", training, device="cpu"))


def run_killed(root: Path, num_published: int) -> int | None:
    """Trains in a process of its own that is killed (SIGKILL) when it is about to publish one file more than so many."""
    process = FORKS.Process(target=train_until_killed, args=(str(root), num_published))
    process.start()
    process.join(300)
    return process.exitcode


def test_killed_in_the_middle_of_checkpoints_gives_the_losses_and_weights_of_an_undisturbed_run(
    undisturbed: Path, tmp_path: Path
) -> None:
    whole, plan, wanted = read_root(undisturbed)
    storage = copy_corpus(undisturbed, tmp_path)
    # A checkpoint is 9 files with its manifest: killed within the first, then within the second, before its manifest.
    for num_published in (3, 9 + 8):
        assert run_killed(tmp_path, num_published) == -signal.SIGKILL
        assert find_training(storage, plan.training_id) is None
    assert run_killed(tmp_path, 1_000_000) == 0
    manifest = find_training(storage, plan.training_id)
    assert manifest is not None
    assert manifest.weights_digest == wanted.weights_digest
    assert history(storage, manifest) == history(whole, wanted)
    leftovers = [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-") or path.name == "unfinished"]
    assert leftovers == []


def test_finished_training_is_not_done_again(undisturbed: Path) -> None:
    storage, plan, first = read_root(undisturbed)
    moments: list[Progress] = []
    assert train_model(storage, plan, moments.append) == first
    assert moments == []


def drop_tail(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (flip_byte, "model.safetensors"),
        (drop_tail, "model.safetensors"),
        (Path.unlink, "model.safetensors"),
        (flip_byte, "optimizer.safetensors"),
        (drop_tail, "metrics.jsonl"),
        (flip_byte, "config.json"),
        (flip_byte, "manifest.json"),
        (Path.unlink, "manifest.json"),
    ],
)
def test_damaged_checkpoint_is_made_again_from_the_one_before(
    undisturbed: Path, tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    storage, plan, first = copy_root(undisturbed, tmp_path)
    damage(Path(storage.path(f"{first.checkpoint}/{name}")))
    assert find_training(storage, plan.training_id) is None
    done: list[float] = []
    again = train_model(storage, plan, lambda progress: done.append(progress.done))
    assert done == [4, 5, 6]
    assert again.weights_digest == first.weights_digest


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    storage = make_storage(tmp_path)
    corpus = make_training_corpus(storage)
    for num in (1, 3):
        plan = make_plan(corpus, steps=9, keep_checkpoints=num, seed=num)
        train_model(storage, plan)
        assert list_checkpoint_steps(storage, plan.training_id) == [6, 8, 9][-num:]


def test_metrics_do_not_depend_on_how_often_checkpoints_are_made(tmp_path: Path) -> None:
    first = train_undisturbed(tmp_path / "a", checkpoint_every_steps=1)
    second = train_undisturbed(tmp_path / "b", checkpoint_every_steps=100)
    assert first[1] == second[1]
    assert first[0].weights_digest == second[0].weights_digest


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0
        ),
        GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, resid_pdrop=0.5),
    ],
    ids=["llama-untied", "gpt2-dropout"],
)
def test_other_families_train_and_resume(tmp_path: Path, config: Any) -> None:
    config.save_pretrained(tmp_path / "family")
    results = []
    for name, step in (("undisturbed", -1), ("interrupted", 3)):
        storage = make_storage(tmp_path / name)
        training = TrainingConfig(steps=5, batch_size=4, learning_rate=1e-2, warmup_steps=0, checkpoint_every_steps=2)
        plan = plan_training(make_training_corpus(storage), "reference", str(tmp_path / "family"), training, device="cpu")
        if step >= 0:
            with pytest.raises(Interrupted):
                train_model(storage, plan, interrupt_at(step))
        manifest = train_model(storage, plan)
        results.append((manifest.weights_digest, history(storage, manifest)))
    assert results[0] == results[1]


def test_students_of_both_methods_train_on_their_own_data(tmp_path: Path) -> None:
    storage = make_storage(tmp_path)
    corpus = make_training_corpus(storage)
    selection = make_selection(storage, corpus, ([0, 3, 6], [], [1, 8]))
    miniplm, pretrain = (train_model(storage, make_plan(corpus, method, selection, epochs=2)) for method in ("miniplm", "pretrain"))
    assert miniplm.num_tokens == 2 * selection.num_selected_tokens
    assert pretrain.num_tokens >= 2 * selection.num_selected_tokens
    assert miniplm.weights_digest != pretrain.weights_digest


def test_training_at_a_root_that_is_not_local(tmp_path: Path) -> None:
    local = make_storage(tmp_path)
    corpus = make_training_corpus(local)
    remote = Storage(f"memory://{tmp_path.name}")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            remote.write_bytes(str(path.relative_to(tmp_path)), path.read_bytes())
    plan = make_plan(corpus)
    with pytest.raises(Interrupted):
        train_model(remote, plan, interrupt_at(5))
    assert train_model(remote, plan).weights_digest == train_model(local, plan).weights_digest
    assert find_training(remote, plan.training_id) is not None


class PoisonedMethod(ReferenceMethod):
    """Trains on the reference split; the loss of these micro-batches is not finite."""

    def __init__(self, poisoned: set[int]) -> None:
        self.poisoned = poisoned
        self.num_calls = 0

    def make_loss(self, storage: Storage, inputs: MethodInputs, device: torch.device, compile: bool = False) -> LossFunction:
        def loss(body: torch.nn.Module, head: Any, batch: Any, gradient_scale: float | None) -> torch.Tensor:
            self.num_calls += 1
            factor = float("nan") if self.num_calls in self.poisoned else 1.0
            return scale_gradient(sum_language_model_loss(body, head, batch) * factor, gradient_scale)

        return loss


def make_poisoned_plan(storage: Storage, monkeypatch: pytest.MonkeyPatch, poisoned: set[int], **training: Any) -> TrainingPlan:
    monkeypatch.setitem(METHODS, "poisoned", PoisonedMethod(poisoned))
    return make_plan(make_training_corpus(storage), "poisoned", **training)


def test_steps_without_a_finite_loss_are_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = make_storage(tmp_path)
    manifest = train_model(storage, make_poisoned_plan(storage, monkeypatch, {2, 3, 5}))
    rows = history(storage, manifest)
    assert manifest.num_skipped_steps == 3
    assert [row.step for row in rows] == [1, 4, 6]
    assert manifest.num_tokens == sum(row.num_tokens for row in rows)


def test_three_steps_in_a_row_without_a_finite_loss_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = make_storage(tmp_path)
    plan = make_poisoned_plan(storage, monkeypatch, {5, 6, 7}, steps=9)
    with pytest.raises(TrainingError, match=r"not finite in step 7, the 3\. in a row; the last good checkpoint is .*step-00000006"):
        train_model(storage, plan)
    assert find_training(storage, plan.training_id) is None
    checkpoint = find_checkpoint(storage, plan.training_id, 6)
    assert checkpoint is not None
    assert (checkpoint.num_skipped_steps, checkpoint.num_skipped_in_row) == (2, 2)


def test_a_training_that_never_had_a_finite_loss_does_not_end_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = make_storage(tmp_path)
    with pytest.raises(TrainingError, match=r"not finite in step 2.*there is no checkpoint yet"):
        train_model(storage, make_poisoned_plan(storage, monkeypatch, {1, 2}, steps=2, checkpoint_every_steps=5))


def test_memory_that_runs_out_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class HungryMethod(ReferenceMethod):
        def make_loss(self, storage: Storage, inputs: MethodInputs, device: torch.device, compile: bool = False) -> LossFunction:
            def loss(*inputs: Any) -> torch.Tensor:
                raise torch.OutOfMemoryError("CUDA out of memory")

            return loss

    storage = make_storage(tmp_path)
    monkeypatch.setitem(METHODS, "hungry", HungryMethod())
    with pytest.raises(TrainingError, match=r"memory ran out in step 1 with 4 sequences.*training\.micro_batch_size"):
        train_model(storage, make_plan(make_training_corpus(storage), "hungry", micro_batch_size=4))


def test_two_processes_do_not_train_the_same(tmp_path: Path) -> None:
    storage = make_storage(tmp_path)
    plan = make_plan(make_training_corpus(storage))
    with (
        exclusive(storage, layout.training_folder(plan.training_id), "this"),
        pytest.raises(BusyError, match=f"training {plan.training_id}"),
    ):
        train_model(storage, plan)
