"""What the files of a training say of it: its manifest, and those of its checkpoints."""

from __future__ import annotations

from typing import Any

from miniplm import layout
from miniplm.records.manifests import CheckpointMetrics, Record, TrainingManifest
from miniplm.records.stored import find_record, holds_files, parse_metrics
from miniplm.storage.root import Storage, digest_content

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
OPTIMIZER = "optimizer.safetensors"


class CheckpointManifest(Record):
    """A checkpoint after `step` optimizer steps. `files` are digests by name, `weights_digest` is as a model's.

    `num_skipped_in_row` of the `num_skipped_steps` without a finite gradient are the last steps of all. `recipe` is that
    of the training; older checkpoints have none. A milestone that training no longer goes on from has no optimizer.
    `micro_batch_size` is of the passes that made it, which may be other than the recipe's; older checkpoints have neither it
    nor `digest`, which is of all other fields.
    """

    training_id: str
    step: int
    files: dict[str, str]
    weights_digest: str
    num_skipped_steps: int
    num_skipped_in_row: int
    recipe: dict[str, Any] | None = None
    micro_batch_size: int | None = None
    digest: str | None = None

    def signed(self) -> CheckpointManifest:
        """The same with the digest of all else that it says."""
        return self.model_copy(update={"digest": self._digest_rest()})

    @property
    def is_as_written(self) -> bool:
        """Whether it says what it said when it was signed; older ones never were."""
        return self.digest in (None, self._digest_rest())

    def _digest_rest(self) -> str:
        return digest_content({name: value for name, value in self.as_json().items() if name != "digest"})

    def exported_files(self) -> dict[str, str]:
        """A transformers directory and its metrics: all but the optimizer."""
        return {name: digest for name, digest in self.files.items() if name != OPTIMIZER}


def find_training(storage: Storage, training_id: str) -> TrainingManifest | None:
    """The manifest of a finished training whose final checkpoint is there whole."""
    manifest = find_record(storage, layout.training_manifest(training_id), TrainingManifest)
    if manifest is None:
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
    return manifest if holds_files(storage, folder, manifest.files) else None


def read_checkpoint_manifest(storage: Storage, training_id: str, step: int) -> CheckpointManifest | None:
    """The manifest of a checkpoint, whole or not; None where there is none that can be read."""
    manifest = find_record(storage, f"{layout.checkpoint_folder(training_id, step)}/{MANIFEST}", CheckpointManifest)
    return manifest if manifest is not None and manifest.is_as_written else None


def read_metrics(storage: Storage, training_id: str, step: int) -> list[CheckpointMetrics]:
    """The metrics of all steps up to a checkpoint."""
    return parse_metrics(storage.read_bytes(f"{layout.checkpoint_folder(training_id, step)}/{METRICS}"))
