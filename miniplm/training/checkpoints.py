"""Checkpoints at the storage root: a transformers directory, the optimizer's moments, the metrics so far; no pickle.

A checkpoint is there when its `manifest.json`, published last, agrees with every file. Any other is as good as none.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from miniplm import layout
from miniplm.artifacts import CheckpointMetrics, Record
from miniplm.errors import DamagedFileError, StorageError
from miniplm.models.files import list_weight_files
from miniplm.models.identity import digest_weights
from miniplm.storage import Storage, digest_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
OPTIMIZER = "optimizer.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class CheckpointManifest(Record):
    """A checkpoint after `step` optimizer steps. `files` are digests by name, `weights_digest` is as a model's.

    `num_skipped_in_row` of the `num_skipped_steps` without a finite gradient are the last steps of all.
    """

    training_id: str
    step: int
    files: dict[str, str]
    weights_digest: str
    num_skipped_steps: int
    num_skipped_in_row: int

    def exported_files(self) -> dict[str, str]:
        """A transformers directory and its metrics: all but the optimizer."""
        return {name: digest for name, digest in self.files.items() if name != OPTIMIZER}


def publish_checkpoint(
    storage: Storage,
    training_id: str,
    step: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    metrics: list[CheckpointMetrics],
    tokenizer_files: Mapping[str, bytes],
    num_skipped_steps: int = 0,
    num_skipped_in_row: int = 0,
) -> CheckpointManifest:
    """Publishes the files of a checkpoint and then its manifest, in place of whatever had its name.

    Raises `StorageError` where there is no space left; the checkpoints before are kept.
    """
    folder = layout.checkpoint_folder(training_id, step)
    with _explain_full_disk(storage, folder), _unfinished_folder(storage, training_id) as local:
        storage.delete(folder)
        model.save_pretrained(str(local))
        for name, content in tokenizer_files.items():
            (local / name).write_bytes(content)
        weights_digest = digest_weights(list_weight_files(local))
        save_file(_optimizer_tensors(model, optimizer), local / OPTIMIZER, metadata={"format": "pt"})
        (local / METRICS).write_text("".join(row.model_dump_json() + "\n" for row in metrics), encoding="utf-8")
        files = {path.name: digest_file(path) for path in sorted(local.iterdir()) if path.is_file()}
        for name in files:
            with storage.publish(f"{folder}/{name}") as path:
                shutil.move(local / name, path)
        manifest = CheckpointManifest(
            training_id=training_id,
            step=step,
            files=files,
            weights_digest=weights_digest,
            num_skipped_steps=num_skipped_steps,
            num_skipped_in_row=num_skipped_in_row,
        )
        storage.write_json(f"{folder}/{MANIFEST}", manifest.as_json())
    return manifest


def list_checkpoint_steps(storage: Storage, training_id: str) -> list[int]:
    """Steps of all checkpoints, whole or not, ascending."""
    names = storage.list_names(layout.checkpoints_folder(training_id))
    return sorted(int(name.removeprefix("step-")) for name in names if name.startswith("step-") and name[5:].isdigit())


def find_checkpoint(storage: Storage, training_id: str, step: int) -> CheckpointManifest | None:
    """The checkpoint of a step where it is there whole: every file with the digest that its manifest says."""
    folder = layout.checkpoint_folder(training_id, step)
    if not storage.exists(f"{folder}/{MANIFEST}"):
        return None
    try:
        manifest = CheckpointManifest.model_validate(storage.read_json(f"{folder}/{MANIFEST}"))
    except (ValidationError, DamagedFileError):
        return None
    if (manifest.training_id, manifest.step) != (training_id, step):
        return None
    for name, digest in manifest.files.items():
        if not storage.exists(f"{folder}/{name}") or storage.digest(f"{folder}/{name}") != digest:
            return None
    return manifest


def find_last_checkpoint(storage: Storage, training_id: str) -> CheckpointManifest | None:
    """The whole checkpoint with the most steps."""
    for step in reversed(list_checkpoint_steps(storage, training_id)):
        if (manifest := find_checkpoint(storage, training_id, step)) is not None:
            return manifest
    return None


def read_metrics(storage: Storage, training_id: str, step: int) -> list[CheckpointMetrics]:
    """The metrics of all steps up to a checkpoint."""
    content = storage.read_bytes(f"{layout.checkpoint_folder(training_id, step)}/{METRICS}").decode()
    return [CheckpointMetrics.model_validate(json.loads(line)) for line in content.splitlines()]


def restore_checkpoint(
    storage: Storage, manifest: CheckpointManifest, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> list[CheckpointMetrics]:
    """Puts a checkpoint's weights and moments into a model of the same recipe and its optimizer; gives the metrics so far."""
    with tempfile.TemporaryDirectory(prefix="miniplm-") as temporary:
        folder = storage.download(layout.checkpoint_folder(manifest.training_id, manifest.step), Path(temporary) / "checkpoint")
        saved = type(model).from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True)
        moments = load_file(folder / OPTIMIZER)
        with torch.no_grad():
            for (name, parameter), (saved_name, value) in zip(model.named_parameters(), saved.named_parameters(), strict=True):
                assert name == saved_name
                # Copied into memory of torch's own alignment, on which the last bits of a product can depend.
                parameter.copy_(value)
                if f"{name}/step" in moments:
                    state = {key: moments[f"{name}/{key}"].to(parameter.device, copy=True) for key in _MOMENTS}
                    optimizer.state[parameter] = state
    return read_metrics(storage, manifest.training_id, manifest.step)


def delete_old_checkpoints(storage: Storage, training_id: str, last_step: int, num_kept: int) -> None:
    """Deletes all but the last `num_kept` checkpoints up to `last_step`, and any beyond it.

    Where the root has no locks, those beyond may be the work of a process that is ahead, and stay.
    """
    steps = [step for step in list_checkpoint_steps(storage, training_id) if storage.is_local or step <= last_step]
    kept = [step for step in steps if step <= last_step][-num_kept:]
    for step in steps:
        if step not in kept:
            folder = layout.checkpoint_folder(training_id, step)
            # The manifest first: a checkpoint that is half deleted is none.
            storage.delete(f"{folder}/{MANIFEST}")
            storage.delete(folder)


def _optimizer_tensors(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        for key in _MOMENTS:
            if key in state:
                tensors[f"{name}/{key}"] = state[key].contiguous()
    return tensors


@contextmanager
def _unfinished_folder(storage: Storage, training_id: str) -> Iterator[Path]:
    """A local folder for files that are not published yet: below the root where that is local, so that they are only renamed."""
    if not storage.is_local:
        with tempfile.TemporaryDirectory(prefix="miniplm-") as temporary:
            yield Path(temporary)
        return
    folder = Path(storage.path(layout.unfinished_checkpoint(training_id)))
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _explain_full_disk(storage: Storage, relative: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has an error type of its own, which tells the reason in words only.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
        if not full:
            raise
        raise StorageError(
            f"cannot write {storage.url(relative)}: no space left. Free some and run the same command again; "
            "training goes on at the checkpoint before"
        ) from error
