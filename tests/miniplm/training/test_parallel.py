"""Two processes train as one does; what they leave, one or two go on with; a lost one stops the other."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from miniplm import layout
from miniplm.corpus.reader import load_corpus
from miniplm.records.manifests import CheckpointMetrics, TrainingManifest
from miniplm.storage.root import Storage
from miniplm.training.checkpoints import list_checkpoint_steps, read_metrics
from miniplm.training.loop import find_training, train_model
from miniplm.training.parallel import ProcessGroup
from tests.miniplm.group_trainings import SETTINGS, prepare_root, spoil_micro_batch, train
from tests.miniplm.made_trainings import make_plan
from tests.miniplm.process_groups import run_group


def read(root: Path) -> tuple[TrainingManifest, list[CheckpointMetrics], dict[str, torch.Tensor]]:
    """The finished training of a root: its manifest, its metrics without time, its weights and moments."""
    storage = Storage(str(root))
    manifest = find_training(storage, make_plan(load_corpus(storage, "made"), **SETTINGS).training_id)
    assert manifest is not None
    rows = [row.model_copy(update={"seconds": 0.0}) for row in read_metrics(storage, manifest.training_id, manifest.num_steps)]
    folder = Path(storage.path(manifest.checkpoint))
    return manifest, rows, load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")


def train_alone(root: Path) -> None:
    storage = Storage(str(root))
    train_model(storage, make_plan(load_corpus(storage, "made"), **SETTINGS))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alone")
    prepare_root(str(root))
    train_alone(root)
    return root


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("together")
    prepare_root(str(root))
    assert run_group(root, train, [str(root)]) == [0, 0]
    return root


def assert_equal_but_for_rounding(first: Path, second: Path) -> None:
    (manifest, rows, tensors), (other_manifest, other_rows, other_tensors) = read(first), read(second)
    assert manifest.training_id == other_manifest.training_id
    assert (manifest.num_tokens, manifest.num_steps) == (other_manifest.num_tokens, other_manifest.num_steps)
    for row, other in zip(rows, other_rows, strict=True):
        assert (row.step, row.num_tokens, row.learning_rate) == (other.step, other.num_tokens, other.learning_rate)
        assert row.loss == pytest.approx(other.loss, abs=1e-4)
        assert row.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)
    assert tensors.keys() == other_tensors.keys()
    for name in tensors:
        torch.testing.assert_close(tensors[name], other_tensors[name], rtol=0, atol=1e-3, msg=name)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("split")
    prepare_root(str(root))
    assert run_group(root, train, [str(root)], sharding="fsdp") == [0, 0]
    return root


def copy_until_step_4(root: Path, target: Path) -> None:
    """A finished training as it was before its last step."""
    shutil.copytree(root, target, dirs_exist_ok=True)
    storage = Storage(str(target))
    manifest = read(target)[0]
    storage.delete(layout.training_manifest(manifest.training_id))
    storage.delete(manifest.checkpoint)
    assert list_checkpoint_steps(storage, manifest.training_id) == [4]


def test_two_processes_give_the_losses_and_weights_of_one(alone: Path, together: Path) -> None:
    assert_equal_but_for_rounding(alone, together)
    assert read(together)[0].num_processes == 2


def test_weights_split_among_processes_give_the_same_and_a_checkpoint_of_the_same_form(alone: Path, split: Path) -> None:
    assert_equal_but_for_rounding(alone, split)


def test_a_lost_process_stops_the_other_and_what_they_left_is_gone_on_with(alone: Path, together: Path, tmp_path: Path) -> None:
    root = tmp_path / "lost"
    prepare_root(str(root))
    # Steps 1 to 3 are done and 2 is kept; the one in which the process is lost is not.
    first, second = run_group(tmp_path, train, [str(root), 4])
    assert second == -signal.SIGKILL
    assert first not in (0, None)
    training_id = read(together)[0].training_id
    assert find_training(Storage(str(root)), training_id) is None
    assert list_checkpoint_steps(Storage(str(root)), training_id) == [2]
    shutil.copytree(root, tmp_path / "one")
    train_alone(tmp_path / "one")
    assert_equal_but_for_rounding(alone, tmp_path / "one")
    # By two again, to the last bit.
    assert run_group(tmp_path, train, [str(root)]) == [0, 0]
    assert read(root)[1] == read(together)[1]
    assert read(root)[0].weights_digest == read(together)[0].weights_digest


def test_one_process_goes_on_with_what_was_split_among_two(alone: Path, split: Path, tmp_path: Path) -> None:
    copy_until_step_4(split, tmp_path)
    train_alone(tmp_path)
    assert_equal_but_for_rounding(alone, tmp_path)
    assert read(tmp_path)[0].num_processes == 1


def test_what_one_process_left_is_split_among_two(alone: Path, tmp_path: Path) -> None:
    copy_until_step_4(alone, tmp_path)
    assert run_group(tmp_path, train, [str(tmp_path)], sharding="fsdp") == [0, 0]
    assert_equal_but_for_rounding(alone, tmp_path)


def test_a_loss_that_is_not_finite_in_one_of_four_skips_the_step_in_all(tmp_path: Path) -> None:
    prepare_root(str(tmp_path / "one"))
    prepare_root(str(tmp_path / "four"))
    # Three micro-batches a step: the fourth process has none, and the first one's second is in step 2.
    assert run_group(tmp_path, train, [str(tmp_path / "four"), None, 2], world_size=4) == [0, 0, 0, 0]
    with pytest.MonkeyPatch.context() as patch:
        spoil_micro_batch(patch, ProcessGroup(), 4)
        train_alone(tmp_path / "one")
    manifest, rows, _ = read(tmp_path / "four")
    assert manifest.num_skipped_steps == 1
    assert [row.step for row in rows] == [1, 3, 4, 5, 6]
    assert_equal_but_for_rounding(tmp_path / "one", tmp_path / "four")


def test_one_process_alone_needs_no_address() -> None:
    group = ProcessGroup()
    with group.connected(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
        assert (group.share("a"), group.add(0.1, torch.device("cpu"))) == ("a", 0.1)
    assert group.device(torch.device("cuda")) == torch.device("cuda")
    assert ProcessGroup(3, 8, 1).device(torch.device("cuda")) == torch.device("cuda", 1)
    assert ProcessGroup(3, 8, 1).device(torch.device("cpu")) == torch.device("cpu")
