"""Checkpoints at the storage root: a transformers directory, the optimizer's moments, the metrics so far; no pickle.

A checkpoint is there when its `manifest.json`, published last, agrees with every file. Any other counts as none,
but one of another training is never overwritten.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from miniplm import layout
from miniplm.errors import StorageError, TrainingError, list_offenders
from miniplm.models.files import list_weight_files
from miniplm.models.identity import digest_weights
from miniplm.records.manifests import CheckpointMetrics
from miniplm.storage.root import Storage, digest_file
from miniplm.training.records import (
    MANIFEST,
    METRICS,
    OPTIMIZER,
    CheckpointManifest,
    find_checkpoint,
    list_checkpoint_steps,
    read_checkpoint_manifest,
    read_metrics,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


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
    recipe: dict[str, Any] | None = None,
    micro_batch_size: int | None = None,
) -> CheckpointManifest:
    """Publishes the files of a checkpoint and then its manifest, in place of whatever had its name.

    Raises `StorageError` where there is no space left; the checkpoints before are kept.
    """
    folder = layout.checkpoint_folder(training_id, step)
    with _explain_full_disk(storage, folder), _unfinished_folder(storage, training_id) as local:
        storage.delete(folder)  # it is no checkpoint, or this step would not be computed again
        model.save_pretrained(str(local))
        for name, content in tokenizer_files.items():
            (local / name).write_bytes(content)
        weights_digest = digest_weights(list_weight_files(local))
        save_file(_optimizer_tensors(model, optimizer), local / OPTIMIZER, metadata={"format": "pt"})
        (local / METRICS).write_text("".join(row.model_dump_json() + "\n" for row in metrics), encoding="utf-8")
        files = {path.name: digest_file(path) for path in sorted(local.iterdir()) if path.is_file()}
        # One by one and in any order: until the manifest is there, none of them counts.
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
            recipe=recipe,
            micro_batch_size=micro_batch_size,
        ).signed()
        storage.write_json(f"{folder}/{MANIFEST}", manifest.as_json())
    return manifest


def find_last_checkpoint(storage: Storage, training_id: str, recipe: dict[str, Any]) -> CheckpointManifest | None:
    """The whole checkpoint with the most steps that training can go on from.

    Raises `TrainingError` where a folder among them holds a checkpoint of another recipe: somebody has put it there, and
    to train on over it would mix two trainings, to write over it would destroy one.
    """
    for step in reversed(list_checkpoint_steps(storage, training_id)):
        _check_recipe(storage, training_id, step, recipe)
        manifest = find_checkpoint(storage, training_id, step)
        if manifest is not None and OPTIMIZER in manifest.files:
            return manifest
    return None


def _check_recipe(storage: Storage, training_id: str, step: int, recipe: dict[str, Any]) -> None:
    manifest = read_checkpoint_manifest(storage, training_id, step)
    if manifest is None or manifest.recipe is None or manifest.recipe == recipe:
        return
    theirs, ours = _flatten(manifest.recipe), _flatten(recipe)
    fields = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    differences = list_offenders(f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here" for name in fields)
    folder = layout.checkpoint_folder(training_id, step)
    raise TrainingError(
        f"{storage.url(folder)} holds a checkpoint of another training, {manifest.training_id}: {differences}. "
        f"Move it to its own training or delete the folder, and run the same command again; {training_id} goes on from its own last checkpoint"
    )


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names: `training.learning_rate`."""
    fields: dict[str, Any] = {}
    for name, value in content.items():
        fields |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return fields


def restore_checkpoint(
    storage: Storage, manifest: CheckpointManifest, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> list[CheckpointMetrics]:
    """Puts a checkpoint's weights and moments into a model of the same recipe and its optimizer; gives the metrics so far."""
    with tempfile.TemporaryDirectory(prefix="miniplm-") as temporary:
        folder = storage.download(layout.checkpoint_folder(manifest.training_id, manifest.step), Path(temporary) / "checkpoint")
        # A second model in memory for a moment: so the names and ties of weights are transformers' matter, as in saving.
        saved = type(model).from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True)
        moments = load_file(folder / OPTIMIZER)
        with torch.no_grad():
            for (name, parameter), (saved_name, value) in zip(model.named_parameters(), saved.named_parameters(), strict=True):
                assert name == saved_name
                # Copied into memory of torch's own alignment, on which the last bits of a product can depend.
                parameter.copy_(value)
                # A weight that had no gradient yet has none.
                if f"{name}/step" in moments:
                    state = {key: moments[f"{name}/{key}"].to(parameter.device, copy=True) for key in _MOMENTS}
                    optimizer.state[parameter] = state
    return read_metrics(storage, manifest.training_id, manifest.step)


def is_milestone(step: int, milestone_every_steps: int | None) -> bool:
    """Whether the checkpoint of a step is kept for good."""
    return milestone_every_steps is not None and step % milestone_every_steps == 0


def delete_old_checkpoints(
    storage: Storage, training_id: str, last_step: int, num_kept: int, milestone_every_steps: int | None = None
) -> None:
    """Deletes all but the last `num_kept` checkpoints up to `last_step` and the milestones, and any beyond it.

    Of an older milestone only the optimizer's moments go, two thirds of it: it is there to be measured. Where the
    root has no locks, checkpoints beyond `last_step` may be the work of a process that is ahead, and stay.
    """
    steps = [step for step in list_checkpoint_steps(storage, training_id) if storage.is_local or step <= last_step]
    kept = [step for step in steps if step <= last_step][-num_kept:]
    for step in steps:
        if step in kept:
            continue
        folder = layout.checkpoint_folder(training_id, step)
        if step <= last_step and is_milestone(step, milestone_every_steps):
            _delete_optimizer(storage, training_id, step)
        else:
            # The manifest first: a checkpoint that is half deleted is none.
            storage.delete(f"{folder}/{MANIFEST}")
            storage.delete(folder)


def _delete_optimizer(storage: Storage, training_id: str, step: int) -> None:
    path = f"{layout.checkpoint_folder(training_id, step)}/{OPTIMIZER}"
    if not storage.exists(path):
        return
    manifest = read_checkpoint_manifest(storage, training_id, step)
    if manifest is not None and OPTIMIZER in manifest.files:
        # The manifest first: killed in between, it speaks of no file that is gone.
        lean = manifest.model_copy(update={"files": manifest.exported_files()}).signed()
        storage.write_json(f"{layout.checkpoint_folder(training_id, step)}/{MANIFEST}", lean.as_json())
    storage.delete(path)


def _optimizer_tensors(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Step (), and both moments (...) in the shape of their parameter, by `parameter/moment`."""
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
