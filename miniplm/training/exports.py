"""A finished training as a plain model folder, such as a run's student."""

from __future__ import annotations

import shutil

from miniplm.errors import TrainingError
from miniplm.records.manifests import TrainingManifest
from miniplm.records.stored import find_record, holds_files
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage, digest_file
from miniplm.training.model_card import write_model_card

TRAINING = "training.json"
_CONFIG = "config.json"


def export_model(storage: Storage, manifest: TrainingManifest, target_folder: str) -> None:
    """Copies the final model, its tokenizer and its metrics to a folder at the storage root, in place of another there.

    `training.json`, the manifest, is published last, and config.json right before it, so that a folder without
    them is not taken for a model. A model card goes with them. Nothing happens where the folder already holds this training whole.
    Raises `TrainingError` where the checkpoint is no longer what the manifest says.
    """
    with exclusive(storage, target_folder, f"the model folder {target_folder}"):
        if find_export(storage, target_folder) == manifest:
            return
        # First what makes a folder a model and a student, so that a kill leaves no model of two trainings.
        for name in (TRAINING, _CONFIG):
            storage.delete(f"{target_folder}/{name}")
        storage.delete(target_folder)
        for name in sorted(manifest.files, key=lambda name: (name == _CONFIG, name)):
            if name == _CONFIG:
                write_model_card(storage, target_folder, manifest)
            source = f"{manifest.checkpoint}/{name}"
            try:
                with storage.open(source) as file, storage.publish(f"{target_folder}/{name}") as path:
                    with open(path, "wb") as copy:
                        shutil.copyfileobj(file, copy, 1 << 20)
                    if digest_file(path) != manifest.files[name]:
                        raise TrainingError(
                            f"{storage.url(source)} is damaged: run the training again, it goes on at the checkpoint before"
                        )
            except FileNotFoundError as error:
                raise TrainingError(
                    f"{storage.url(source)} is missing: run the training again, it goes on at the checkpoint before"
                ) from error
        storage.write_json(f"{target_folder}/{TRAINING}", manifest.as_json())


def find_export(storage: Storage, folder: str) -> TrainingManifest | None:
    """The training whose model a folder holds whole: every file with the digest that `training.json` says."""
    manifest = find_record(storage, f"{folder}/{TRAINING}", TrainingManifest)
    return manifest if manifest is not None and holds_files(storage, folder, manifest.files) else None
