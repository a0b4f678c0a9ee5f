"""The two models that score: the teacher is given, the reference is given or trained here on the reference split."""

from __future__ import annotations

from miniplm import layout
from miniplm.artifacts import CorpusManifest, ModelEntry, TrainingManifest
from miniplm.config import RunConfig
from miniplm.errors import ModelError
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.files import locate_model
from miniplm.models.identity import identify_model
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.run_record import StageRecord
from miniplm.storage import Storage


def identify_teacher(config: RunConfig) -> ModelEntry:
    """The teacher's entry. Raises `ModelError` where its files are not there or not whole."""
    teacher = config.teacher
    dtype = resolve_dtype(teacher.dtype, resolve_device(config.scoring.device))
    folder = locate_model(teacher.model, teacher.revision)
    return identify_model(folder, teacher.model, dtype, teacher.revision, trust_remote_code=teacher.trust_remote_code)
