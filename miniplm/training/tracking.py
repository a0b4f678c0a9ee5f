"""Curves of a training for those who watch: TensorBoard event files at the storage root, and Weights & Biases where it is asked for.

Both are fed at each checkpoint with the steps since the last one, so that a training that was killed and resumed
has each step once.
"""

from __future__ import annotations

import importlib.util
import math
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

from miniplm import layout
from miniplm.config.run import TrainingConfig
from miniplm.errors import ConfigError
from miniplm.records.manifests import CheckpointMetrics, Evaluation
from miniplm.storage.root import Storage

# TensorBoard takes every file with `tfevents` in its name and reads those of a folder in the order of their names.
_EVENTS = re.compile(r"events\.out\.tfevents\.(\d{10})\.miniplm")
_HELDOUT_EVENTS = "events.out.tfevents.heldout.miniplm"


def check_tracking(training: TrainingConfig) -> None:
    """Raises `ConfigError` where Weights & Biases is asked for and its package is not installed."""
    if training.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"training.wandb_project is {training.wandb_project!r}, but the package wandb is not installed: `pip install wandb` and "
            "`wandb login`, or leave the field out; TensorBoard files are written in any case"
        )


class Tracker:
    """Where the curves of one training go; a context manager. `recipe` is shown by Weights & Biases as the configuration."""

    def __init__(self, storage: Storage, training_id: str, training: TrainingConfig, recipe: Mapping[str, Any]) -> None:
        check_tracking(training)
        self._storage = storage
        self._training_id = training_id
        self._project = training.wandb_project
        self._recipe = recipe
        self._run: Any = None
        self._next_step = 0

    def __enter__(self) -> Tracker:
        if self._project is not None:
            import wandb

            # The same run whenever the training is resumed. The key is in the environment, or where `wandb login` has put it.
            self._run = wandb.init(
                project=self._project,
                id=self._training_id,
                name=self._training_id,
                resume="allow",
                config=dict(self._recipe),
            )
            self._next_step = int(self._run.step)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if error is None else 1)

    def publish(self, metrics: Sequence[CheckpointMetrics], step: int) -> None:
        """Tells of all steps up to the checkpoint of `step` that were not told of before; `metrics` are those of all steps."""
        publish_events(self._storage, self._training_id, metrics, step)
        if self._run is not None:
            for row in metrics:
                if row.step >= self._next_step:
                    self._run.log(_scalars(row), step=row.step)
            self._next_step = step + 1


def publish_events(storage: Storage, training_id: str, metrics: Sequence[CheckpointMetrics], step: int) -> None:
    """Publishes a TensorBoard file of the steps from the last file's end to `step`; files beyond `step` are deleted first."""
    folder = layout.training_events(training_id)
    ends = sorted(int(match[1]) for name in storage.list_names(folder) if (match := _EVENTS.fullmatch(name)))
    for end in ends:
        if end > step and storage.is_local:  # elsewhere, where there are no locks, they may be of a process that is ahead
            storage.delete(f"{folder}/{_name_events(end)}")
    # The files before hold the steps up to their ends; a step in two files would be drawn twice.
    start = max((end for end in ends if end < step), default=0)
    # Times as if the training had not been interrupted, and ended now.
    seconds = list(accumulate(row.seconds for row in metrics))
    began = time.time() - (seconds[-1] if seconds else 0.0)
    rows = [(row.step, began + passed, _scalars(row)) for row, passed in zip(metrics, seconds, strict=True)]
    _write_events(storage, f"{folder}/{_name_events(step)}", (row for row in rows if start < row[0] <= step))


def publish_heldout_events(storage: Storage, training_id: str, evaluations: Mapping[int, Evaluation]) -> None:
    """Publishes a TensorBoard file of the held-out losses, in nats a token, after so many steps each; in place of the last one."""
    now = time.time()
    rows = (
        (
            step,
            now,
            {"heldout_loss/overall": evaluation.overall.nats_per_token}
            | {f"heldout_loss/{domain}": loss.nats_per_token for domain, loss in evaluation.domains.items()},
        )
        for step, evaluation in sorted(evaluations.items())
    )
    _write_events(storage, f"{layout.training_events(training_id)}/{_HELDOUT_EVENTS}", rows)


def _name_events(step: int) -> str:
    return f"events.out.tfevents.{step:010d}.miniplm"


def _scalars(row: CheckpointMetrics) -> dict[str, float]:
    """Loss in nats a scored token, the gradient's norm before clipping, learning rate, and tokens of the batch a second."""
    return {
        "loss": row.loss,
        "gradient_norm": row.gradient_norm,
        "learning_rate": row.learning_rate,
        "tokens_per_second": row.num_tokens / row.seconds if row.seconds > 0 else math.nan,
    }


def _write_events(storage: Storage, relative: str, rows: Iterable[tuple[int, float, Mapping[str, float]]]) -> None:
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory(prefix="miniplm-") as temporary:
        with SummaryWriter(logdir=temporary) as writer:
            for step, wall_time, scalars in rows:
                for name, value in scalars.items():
                    writer.add_scalar(name, value, step, wall_time)
        (events,) = Path(temporary).iterdir()
        storage.write_bytes(relative, events.read_bytes())
