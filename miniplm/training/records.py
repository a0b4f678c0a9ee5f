"""What the files of a training say of it: its manifest, and those of its checkpoints."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from miniplm import layout
from miniplm.artifacts import CheckpointMetrics, Record, TrainingManifest
from miniplm.errors import DamagedFileError
from miniplm.storage import Storage

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
OPTIMIZER = "optimizer.safetensors"


class CheckpointManifest(Record):
    """A checkpoint after `step` optimizer steps. `files` are digests by name, `weights_digest` is as a model's.

    `num_skipped_in_row` of the `num_skipped_steps` without a finite gradient are the last steps of all. `recipe` is that
    of the training; older checkpoints have none. A milestone that training no longer goes on from has no optimizer.
    """

    training_id: str
    step: int
    files: dict[str, str]
    weights_digest: str
    num_skipped_steps: int
    num_skipped_in_row: int
    recipe: dict[str, Any] | None = None

    def exported_files(self) -> dict[str, str]:
        """A transformers directory and its metrics: all but the optimizer."""
        return {name: digest for name, digest in self.files.items() if name != OPTIMIZER}


def find_training(storage: Storage, training_id: str) -> TrainingManifest | None:
    """The manifest of a finished training whose final checkpoint is there whole."""
    path = layout.training_manifest(training_id)
    if not storage.exists(path):
        return None
    try:
        manifest = TrainingManifest.model_validate(storage.read_json(path))
    except (ValidationError, DamagedFileError):
        return None
    checkpoint = find_checkpoint(storage, training_id, manifest.num_steps)
    if manifest.training_id != training_id or checkpoint is None or checkpoint.weights_digest != manifest.weights_digest:
        return None
    return manifest


def list_checkpoint_steps(storage: Storage, training_id: str) -> list[int]:
    """Steps of all checkpoints, whole or not, ascending."""
    names = storage.list_names(layout.checkpoints_folder(training_id))
    return sorted(int(name.removeprefix("step-")) for name in names if name.startswith("step-") and name[5:].isdigit())


def find_checkpoint(storage: Storage, training_id: str, step: int) -> CheckpointManifest | None:
    """The checkpoint of a step where it is there whole: every file with the digest that its manifest says."""
    folder = layout.checkpoint_folder(training_id, step)
    manifest = read_checkpoint_manifest(storage, training_id, step)
    if manifest is None or (manifest.training_id, manifest.step) != (training_id, step):
        return None
    return manifest if all(storage.holds(f"{folder}/{name}", digest) for name, digest in manifest.files.items()) else None


def read_checkpoint_manifest(storage: Storage, training_id: str, step: int) -> CheckpointManifest | None:
    """The manifest of a checkpoint, whole or not; None where there is none that can be read."""
    path = f"{layout.checkpoint_folder(training_id, step)}/{MANIFEST}"
    if not storage.exists(path):
        return None
    try:
        return CheckpointManifest.model_validate(storage.read_json(path))
    except (ValidationError, DamagedFileError):
        return None


def read_metrics(storage: Storage, training_id: str, step: int) -> list[CheckpointMetrics]:
    """The metrics of all steps up to a checkpoint."""
    content = storage.read_bytes(f"{layout.checkpoint_folder(training_id, step)}/{METRICS}").decode()
    return [CheckpointMetrics.model_validate(json.loads(line)) for line in content.splitlines()]
