"""The held-out losses of a training: of its final model and of the milestones on the way, each measured once and kept beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from miniplm import layout
from miniplm.evaluation.losses import find_losses, write_losses
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import Evaluation, TrainingManifest
from miniplm.records.stored import find_record
from miniplm.records.texts import MeasuredText
from miniplm.storage.root import Storage
from miniplm.training.records import MANIFEST, CheckpointManifest, find_checkpoint, list_checkpoint_steps

if TYPE_CHECKING:
    from miniplm.evaluation.heldout import HeldoutText
    from miniplm.scoring.engine import Scorer

# Loads the model of a folder, ready to score.
OpenScorer = Callable[[Path], "Scorer"]


@dataclass(frozen=True)
class _Pending:
    """A checkpoint to be measured: a folder at the storage root, and those of its files that make the model."""

    step: int
    folder: str
    files: tuple[str, ...]
    weights_digest: str


def find_evaluation(storage: Storage, text: MeasuredText, training: TrainingManifest) -> Evaluation | None:
    """The kept evaluation of a finished training's model on this text; None where it is of other weights, or damaged."""
    return _read_evaluation(
        storage, layout.training_evaluation(training.training_id, text.elsewhere), text, training.weights_digest
    )


def find_checkpoint_evaluations(storage: Storage, text: MeasuredText, training_id: str) -> dict[int, Evaluation]:
    """The kept evaluations of a training's checkpoints on this text, by step, ascending; also of those that are gone by now."""
    names = storage.list_names(layout.checkpoint_evaluations_folder(training_id, text.elsewhere))
    steps = sorted(int(name[5:-5]) for name in names if name.startswith("step-") and name[5:-5].isdigit())
    found = {step: _find_at_step(storage, text, training_id, step) for step in steps}
    return {step: evaluation for step, evaluation in found.items() if evaluation is not None}


def is_measured(storage: Storage, text: MeasuredText, training: TrainingManifest, milestone_every_steps: int | None) -> bool:
    """Whether the final model and every milestone that is there are measured, so that `evaluate_checkpoints` would do nothing."""
    evaluation = find_evaluation(storage, text, training)
    if evaluation is None or find_losses(storage, training.training_id, evaluation.losses_digest, text.elsewhere) is None:
        return False
    return not _find_milestones(storage, text, training, milestone_every_steps)


def evaluate_checkpoints(
    storage: Storage,
    heldout: HeldoutText,
    training: TrainingManifest,
    model_folder: str,
    milestone_every_steps: int | None,
    open_scorer: OpenScorer,
    on_progress: ProgressCallback = ignore_progress,
) -> Evaluation:
    """Measures the milestones (`None`: none) and the final model of a finished training; returns the final model's evaluation.

    `model_folder` at the storage root holds the final model. Each is published as it is done, at `evaluations/step-N.json` below `training/ID`
    (`training/ID/heldout/TEXT_ID` for text from elsewhere), the final one at `evaluation.json` too, after the losses of its sequences; what is there is not measured again. A milestone that is damaged counts as
    none. Raises what `open_scorer` and `evaluate_heldout` raise.
    """
    from miniplm.evaluation.heldout import evaluate_heldout

    training_id, text = training.training_id, heldout.text
    evaluation = find_evaluation(storage, text, training)
    if evaluation is not None and find_losses(storage, training_id, evaluation.losses_digest, text.elsewhere) is None:
        evaluation = None  # of an older version: there is no telling how sure a comparison is
    pending = _find_milestones(storage, text, training, milestone_every_steps)
    if evaluation is None:
        pending.append(_Pending(training.num_steps, model_folder, tuple(training.files), training.weights_digest))
    for index, checkpoint in enumerate(pending):

        def tell(progress: Progress, index: int = index) -> None:
            detail = f"checkpoint {index + 1} of {len(pending)}" if len(pending) > 1 else ""
            done, total = index * heldout.num_tokens + progress.done, len(pending) * heldout.num_tokens
            on_progress(replace(progress, done=done, total=total, detail=f"{detail}  {progress.detail}".strip()))

        with tempfile.TemporaryDirectory(prefix="miniplm-checkpoint-") as scratch:
            scorer = open_scorer(storage.download(checkpoint.folder, Path(scratch) / "model", checkpoint.files))
            measured, losses = evaluate_heldout(heldout, scorer, checkpoint.weights_digest, tell)
            del scorer  # its memory is the next one's
        if checkpoint.step == training.num_steps:
            # The losses first: the evaluation names them by their digest.
            digest = write_losses(storage, training_id, losses, text.elsewhere)
            evaluation = measured.model_copy(update={"losses_digest": digest})
            storage.write_json(layout.training_evaluation(training_id, text.elsewhere), evaluation.as_json())
        else:
            storage.write_json(layout.checkpoint_evaluation(training_id, checkpoint.step, text.elsewhere), measured.as_json())
    assert evaluation is not None
    if _find_at_step(storage, text, training_id, training.num_steps) != evaluation:
        storage.write_json(layout.checkpoint_evaluation(training_id, training.num_steps, text.elsewhere), evaluation.as_json())
    return evaluation


def _find_milestones(
    storage: Storage, text: MeasuredText, training: TrainingManifest, milestone_every_steps: int | None
) -> list[_Pending]:
    """The milestones before the last step that are there whole and not measured yet, ascending."""
    pending = []
    steps = [] if milestone_every_steps is None else list_checkpoint_steps(storage, training.training_id)
    for step in steps:
        is_milestone = milestone_every_steps is not None and step % milestone_every_steps == 0 and step < training.num_steps
        if not is_milestone or _find_at_step(storage, text, training.training_id, step) is not None:
            continue
        manifest = find_checkpoint(storage, training.training_id, step)
        if manifest is not None:
            folder = layout.checkpoint_folder(training.training_id, step)
            pending.append(_Pending(step, folder, tuple(manifest.exported_files()), manifest.weights_digest))
    return pending


def _find_at_step(storage: Storage, text: MeasuredText, training_id: str, step: int) -> Evaluation | None:
    """The kept evaluation of a checkpoint, unless the checkpoint is there and has other weights by now."""
    checkpoint = find_record(storage, f"{layout.checkpoint_folder(training_id, step)}/{MANIFEST}", CheckpointManifest)
    # A damaged one is as good as no checkpoint; what was measured when it was whole stays true.
    weights_digest = None if checkpoint is None else checkpoint.weights_digest
    return _read_evaluation(storage, layout.checkpoint_evaluation(training_id, step, text.elsewhere), text, weights_digest)


def _read_evaluation(storage: Storage, path: str, text: MeasuredText, weights_digest: str | None) -> Evaluation | None:
    evaluation = find_record(storage, path, Evaluation)
    if evaluation is None or MeasuredText.of(evaluation) != text or weights_digest not in (None, evaluation.weights_digest):
        return None
    return evaluation
