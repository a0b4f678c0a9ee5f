"""From a model's entry to its files on this machine, and to the model ready to score."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from miniplm import layout
from miniplm.errors import ModelError
from miniplm.models.identity import require_same_model
from miniplm.models.loading import LoadedModel, load_causal_model, load_model
from miniplm.models.locations import locate_model
from miniplm.records.manifests import ModelEntry
from miniplm.storage.root import Storage


def open_model(storage: Storage, entry: ModelEntry, device: torch.device, will_compile: bool = False) -> LoadedModel:
    """The model of an entry on `device`. Raises `ModelError` as `locate_model` and `load_model`."""
    with model_files(storage, entry) as folder:
        return load_model(folder, entry.dtype, device, entry.trust_remote_code, will_compile)


def open_causal_model(storage: Storage, entry: ModelEntry, device: torch.device) -> tuple[Any, torch.device]:
    """The whole transformers model of an entry, to generate with, and the device that takes its inputs. Raises `ModelError`."""
    with model_files(storage, entry) as folder:
        model, device, _ = load_causal_model(folder, entry.dtype, device, entry.trust_remote_code)
        return model, device


@contextmanager
def model_files(storage: Storage, entry: ModelEntry) -> Iterator[Path]:
    """The local folder with an entry's files; copied for the time of the block where the storage root is remote.

    Raises `ModelError` where there is none, or, of a model that is given, where it is not the one of the entry.
    """
    if not entry.stored:
        folder = locate_model(entry.source, entry.revision)
        require_same_model(entry, folder, storage)
        yield folder
        return
    relative = layout.model_folder(entry.model_id)
    if not storage.exists(f"{relative}/config.json"):
        raise ModelError(
            f"model {entry.model_id} is not at {storage.url(relative)}; train it with `miniplm train-reference CONFIG`"
        )
    with tempfile.TemporaryDirectory(prefix="miniplm-model-") as copies:
        yield storage.download(relative, Path(copies) / entry.model_id)
