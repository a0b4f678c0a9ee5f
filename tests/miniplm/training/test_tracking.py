"""Curves for TensorBoard and Weights & Biases: each step once, however often the training was killed."""

from __future__ import annotations

import importlib.util
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from miniplm import layout
from miniplm.config.run import TrainingConfig
from miniplm.errors import ConfigError
from miniplm.records.manifests import CheckpointMetrics, DomainLoss, Evaluation
from miniplm.storage.root import Storage
from miniplm.training.loop import train_model
from miniplm.training.tracking import Tracker, check_tracking, publish_events, publish_heldout_events
from tests.miniplm.made_trainings import make_plan, make_training_corpus


def make_metrics(num_steps: int) -> list[CheckpointMetrics]:
    """Step s: loss 10 - s, learning rate s / 1000, norm s / 2, 100 tokens in s / 4 seconds; step 4 was skipped."""
    return [
        CheckpointMetrics(
            step=step, loss=10.0 - step, learning_rate=step / 1000, gradient_norm=step / 2, num_tokens=100, seconds=step / 4
        )
        for step in range(1, num_steps + 1)
        if step != 4
    ]


def read_events(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of all scalars in the order in which TensorBoard reads them: little-endian lengths, checksums, records."""
    scalars = []
    for path in sorted(folder.iterdir()):
        assert "tfevents" in path.name
        content, start = path.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            start += 16 + length
    return scalars


def test_each_checkpoint_adds_its_steps_to_the_curves(storage: Storage) -> None:
    metrics = make_metrics(6)
    publish_events(storage, "t", metrics[:2], 2)
    publish_events(storage, "t", metrics, 6)
    folder = Path(storage.path(layout.training_events("t")))
    assert [path.name for path in sorted(folder.iterdir())] == [f"events.out.tfevents.000000000{step}.miniplm" for step in (2, 6)]
    scalars = read_events(folder)
    assert [row for row in scalars if row[0] == "loss"] == [("loss", step, 10.0 - step) for step in (1, 2, 3, 5, 6)]
    assert [row[2] for row in scalars if row[0] == "learning_rate"] == pytest.approx([0.001, 0.002, 0.003, 0.005, 0.006])
    assert [row[2] for row in scalars if row[0] == "gradient_norm"] == [0.5, 1.0, 1.5, 2.5, 3.0]
    assert [row[2] for row in scalars if row[0] == "tokens_per_second"] == pytest.approx([400, 200, 400 / 3, 80, 400 / 6])


@pytest.mark.parametrize("resumed_at", [0, 2, 3])
def test_a_training_that_went_on_further_back_has_each_step_once(storage: Storage, resumed_at: int) -> None:
    metrics = make_metrics(9)
    for step in (2, 3, 5):
        publish_events(storage, "t", [row for row in metrics if row.step <= step], step)
    for step in range(resumed_at + 2, 10, 2):  # with another distance of checkpoints
        publish_events(storage, "t", [row for row in metrics if row.step <= step], step)
    steps = [step for tag, step, _ in read_events(Path(storage.path(layout.training_events("t")))) if tag == "loss"]
    assert steps == [row.step for row in metrics if row.step <= steps[-1]]
    assert steps[-1] in (8, 9)


def test_held_out_losses_of_the_milestones_are_a_curve_too(storage: Storage) -> None:
    def evaluation(nats: float) -> Evaluation:
        loss = DomainLoss(nats_per_token=nats, bits_per_byte=1.0, num_scored_tokens=1, num_sequences=1)
        news = loss.model_copy(update={"nats_per_token": nats + 1})
        return Evaluation(corpus_id="c", weights_digest="w", overall=loss, domains={"news": news}, seconds=0.0)

    publish_heldout_events(storage, "t", {4: evaluation(2.0)})
    publish_heldout_events(storage, "t", {8: evaluation(1.5), 4: evaluation(2.0)})
    assert read_events(Path(storage.path(layout.training_events("t")))) == [
        ("heldout_loss/overall", 4, 2.0),
        ("heldout_loss/news", 4, 3.0),
        ("heldout_loss/overall", 8, 1.5),
        ("heldout_loss/news", 8, 2.5),
    ]


def test_a_training_leaves_its_curves_at_the_storage_root(storage: Storage) -> None:
    manifest = train_model(storage, make_plan(make_training_corpus(storage), steps=3))
    scalars = read_events(Path(storage.path(layout.training_events(manifest.training_id))))
    assert [step for tag, step, _ in scalars if tag == "loss"] == [1, 2, 3]
    assert scalars[-4][2] == pytest.approx(manifest.final_loss)


def test_weights_and_biases_without_its_package_is_refused_before_anything_is_trained(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb_project is 'p', but the package wandb is not installed: `pip install wandb`"):
        check_tracking(TrainingConfig(steps=1, wandb_project="p"))
    plan = make_plan(make_training_corpus(storage), wandb_project="p")
    with pytest.raises(ConfigError, match="wandb is not installed"):
        train_model(storage, plan)
    assert storage.list_names(layout.training_folder(plan.training_id)) == []
    check_tracking(TrainingConfig(steps=1))


def test_weights_and_biases_is_told_each_step_once_in_one_run(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not among those that the tests install: a stand-in with the four calls that are made of it takes its place."""
    calls: list[tuple[str, Any]] = []

    class Run:
        step = 0

        def log(self, data: dict[str, float], step: int) -> None:
            calls.append(("log", (step, data["loss"])))
            Run.step = step + 1

        def finish(self, exit_code: int) -> None:
            calls.append(("finish", exit_code))

    def init(**options: Any) -> Run:
        calls.append(("init", options))
        return Run()

    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    training, metrics = TrainingConfig(steps=6, wandb_project="p"), make_metrics(6)

    def train_interrupted() -> None:
        with Tracker(storage, "t", training, {"method": "miniplm"}) as tracker:
            tracker.publish(metrics[:2], 2)
            tracker.publish(metrics[:3], 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_interrupted()
    with Tracker(storage, "t", training, {"method": "miniplm"}) as tracker:
        tracker.publish(metrics, 6)
    options = {"project": "p", "id": "t", "name": "t", "resume": "allow", "config": {"method": "miniplm"}}
    assert [value for kind, value in calls if kind == "init"] == [options, options]
    assert [value for kind, value in calls if kind == "log"] == [(step, 10.0 - step) for step in (1, 2, 3, 5, 6)]
    assert [value for kind, value in calls if kind == "finish"] == [1, 0]
