"""Measures a finished training's model by the tasks of a run; each result is kept beside the training, by all that decides it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from miniplm import layout
from miniplm.config.run import EvaluationConfig
from miniplm.evaluation.tasks import LocalTask, find_harness, find_local_tasks, require_harness, resolve_tasks
from miniplm.models.dtypes import choose_dtype
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import TaskResult, TrainingManifest
from miniplm.records.stored import find_record
from miniplm.storage.root import Storage, digest_content

if TYPE_CHECKING:
    import torch


def find_task_results(storage: Storage, evaluation: EvaluationConfig, training: TrainingManifest) -> dict[str, TaskResult]:
    """The kept results of the run's tasks, by name; those that are missing, damaged or of other conditions are left out.

    Another version of the harness is another condition, but for a machine that has none. Raises what `find_local_tasks` raises.
    """
    keys = _make_keys(evaluation, training)
    found = {name: _read_result(storage, training.training_id, name, key) for name, key in keys.items()}
    return {name: result for name, result in found.items() if result is not None}


def measure_tasks(
    storage: Storage,
    evaluation: EvaluationConfig,
    training: TrainingManifest,
    model_folder: str,
    device: torch.device,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback = ignore_progress,
) -> dict[str, TaskResult]:
    """The accuracy of a finished training's model at each task of the run; what is kept already is not measured again.

    `model_folder` at the storage root holds the model and its tokenizer; `trust_remote_code` is about the tokenizer.
    Each result is published as it is there. Raises `ConfigError` where
    the harness is needed and not installed, and what `open_tasks` and `measure_task` raise.
    """
    results = find_task_results(storage, evaluation, training)
    keys = _make_keys(evaluation, training)
    missing = [name for name in keys if name not in results]
    if missing:
        version = require_harness()
        # Here and not at the top: it loads torch, and results that are all kept need none of it.
        from miniplm.evaluation.harness import measure_task, open_tasks, open_zero_shot_model

        with tempfile.TemporaryDirectory(prefix="miniplm-student-") as scratch:
            folder = storage.download(model_folder, Path(scratch) / "model", tuple(training.files))
            model = open_zero_shot_model(folder, choose_dtype(device.type), device, trust_remote_code)
        with open_tasks(missing, evaluation.task_folder) as load_task:
            for index, name in enumerate(missing):

                def tell(share: float, detail: str, index: int = index) -> None:
                    on_progress(Progress("zero-shot tasks", index + share, len(missing), "tasks", detail))

                tell(0.0, name)
                result = measure_task(model, load_task(name), evaluation.task_limit, tell)
                result = result.model_copy(update={"key": keys[name], "harness_version": version})
                # After each task: an evaluation that is killed in the ninth has eight.
                storage.write_json(_result_path(training.training_id, name, keys[name]), result.as_json())
                results[name] = result
                tell(1.0, name)
    return {name: results[name] for name in keys}


def average_accuracy(results: Mapping[str, TaskResult]) -> tuple[float, float | None]:
    """The mean accuracy over tasks, each of the same weight, and its standard error; None where a task has none.

    se = sqrt(sum_t se_t^2) / T         the documents of T tasks are drawn independently
    """
    mean = math.fsum(result.accuracy for result in results.values()) / len(results)
    errors = [result.standard_error for result in results.values()]
    if any(error is None for error in errors):
        return mean, None
    return mean, math.sqrt(math.fsum(error**2 for error in errors if error is not None)) / len(results)


def _make_keys(evaluation: EvaluationConfig, training: TrainingManifest) -> dict[str, str]:
    """By task, a digest of what decides its result but the harness: weights, task and data, number of documents."""
    names = resolve_tasks(evaluation.tasks)
    local = find_local_tasks(evaluation.task_folder) if names else {}
    return {name: _make_key(name, local.get(name), evaluation.task_limit, training.weights_digest) for name in names}


def _make_key(name: str, local: LocalTask | None, limit: int | None, weights_digest: str) -> str:
    task = None if local is None else local.digest()
    return digest_content({"name": name, "task": task, "limit": limit, "weights": weights_digest})


def _result_path(training_id: str, name: str, key: str) -> str:
    return layout.task_result(training_id, name.replace("/", "-"), key)


def _read_result(storage: Storage, training_id: str, name: str, key: str) -> TaskResult | None:
    result = find_record(storage, _result_path(training_id, name, key), TaskResult)
    return result if result is not None and result.key == key and find_harness() in (None, result.harness_version) else None
