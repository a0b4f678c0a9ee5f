"""Trains a model from a plan to its manifest, from the last good checkpoint where there is one."""

from __future__ import annotations

import time

from pydantic import ValidationError

from miniplm import layout
from miniplm.architectures import build_model, count_parameters
from miniplm.artifacts import CheckpointMetrics, TrainingManifest
from miniplm.corpus.reader import load_corpus_tokenizer
from miniplm.errors import DamagedFileError, TrainingError
from miniplm.locks import exclusive
from miniplm.models.devices import describe_memory, is_out_of_memory
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.storage import Storage
from miniplm.training.checkpoints import (
    CheckpointManifest,
    delete_old_checkpoints,
    find_checkpoint,
    find_last_checkpoint,
    is_milestone,
    publish_checkpoint,
    restore_checkpoint,
)
from miniplm.training.data import SequenceOrder, count_steps, count_training_sequences
from miniplm.training.optimization import Optimization, StepResult
from miniplm.training.parallel import ProcessGroup
from miniplm.training.recipe import TrainingPlan
from miniplm.training.schedule import learning_rate
from miniplm.training.tokenizer_files import make_tokenizer_files
from miniplm.training.tracking import Tracker
from miniplm.versions import list_versions

# Steps in a row without a finite gradient after which training gives up.
_MAX_SKIPPED_IN_ROW = 3


def train_model(
    storage: Storage,
    plan: TrainingPlan,
    on_progress: ProgressCallback = ignore_progress,
    group: ProcessGroup = ProcessGroup(),  # noqa: B008 - it is immutable
) -> TrainingManifest:
    """The finished training of a plan; does what is missing of it, nothing where it is finished.

    With several processes each calls this with its own `group`, and all return the manifest; the first one locks,
    publishes and reports.

    Killed at any moment and called again, it gives the losses and weights of an undisturbed run on the same machine.
    Raises `TrainingError` where there is nothing to train on, memory runs out, or three steps in a row have no
    finite gradient; `BusyError` where another process trains the same.
    """
    with exclusive(storage, layout.training_folder(plan.training_id), f"training {plan.training_id}"):
        manifest = find_training(storage, plan.training_id)
        if manifest is not None:
            return manifest
        storage.delete_temporary_files(layout.training_folder(plan.training_id))
        with Tracker(storage, plan.training_id, plan.config, plan.recipe.as_json()) as tracker:
            return _Training(storage, plan, on_progress, tracker).run()


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


class _Training:
    """A training under way: `step` optimizer steps are done, `metrics` has a row for each but the skipped ones."""

    def __init__(self, storage: Storage, plan: TrainingPlan, on_progress: ProgressCallback, tracker: Tracker) -> None:
        self.storage = storage
        self.plan = plan
        self.on_progress = on_progress
        self.tracker = tracker
        recipe, config = plan.recipe, plan.config
        self.order = SequenceOrder(storage, plan.method.list_shards(storage, plan.inputs), config.seed)
        self.num_steps = count_steps(config, self.order.num_sequences)
        model = build_model(plan.architecture, recipe.vocab_size, recipe.max_positions, config.seed, plan.trust_remote_code)
        model.config.eos_token_id = model.generation_config.eos_token_id = recipe.eos_token_id
        # Not in the model's own configuration: there it would keep the embedding of EOS from learning.
        model.generation_config.pad_token_id = recipe.eos_token_id
        tokenizer = load_corpus_tokenizer(storage, plan.inputs.corpus.corpus_id, plan.trust_tokenizer_code)
        self.tokenizer_files = make_tokenizer_files(tokenizer, model.config)
        loss_function = plan.method.make_loss(storage, plan.inputs, plan.device)
        self.optimization = Optimization(
            model.to(plan.device), loss_function, config, recipe.training["dtype"], recipe.eos_token_id
        )
        self.step = 0
        self.metrics: list[CheckpointMetrics] = []
        self.num_skipped_steps = 0
        self.num_skipped_in_row = 0
        self.checkpoint = find_last_checkpoint(storage, plan.training_id, recipe.as_json())
        if self.checkpoint is not None:
            self.metrics = restore_checkpoint(storage, self.checkpoint, model, self.optimization.optimizer)
            self.step = self.checkpoint.step
            self.num_skipped_steps = self.checkpoint.num_skipped_steps
            self.num_skipped_in_row = self.checkpoint.num_skipped_in_row

    def run(self) -> TrainingManifest:
        started, num_tokens = time.perf_counter(), 0
        self._report("")
        while self.step < self.num_steps:
            result = self._take_step()
            num_tokens += result.num_tokens
            config = self.plan.config
            is_due = self.step % config.checkpoint_every_steps == 0 or is_milestone(self.step, config.milestone_every_steps)
            if is_due or self.step == self.num_steps:
                self.checkpoint = self._publish_checkpoint()
            rate = num_tokens / (time.perf_counter() - started)
            self._report(f"loss {result.loss:.3f}, {rate:,.0f} tokens/s")
        assert self.checkpoint is not None
        return self._publish_manifest(self.checkpoint)

    def _take_step(self) -> StepResult:
        started = time.perf_counter()
        config = self.plan.config
        start = self.step * config.batch_size
        stop = min(start + config.batch_size, count_training_sequences(config, self.order.num_sequences))
        self.step += 1
        rate = learning_rate(config, self.step, self.num_steps)
        try:
            result = self.optimization.take_step(self.order.read(start, stop), rate)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = config.resolve_micro_batch_size()
            raise TrainingError(
                f"{self.plan.training_id}: memory ran out in step {self.step} with {size} sequences a forward pass "
                f"({describe_memory(self.plan.device)}); "
                + ("use a smaller model or sequence_length" if size == 1 else "set training.micro_batch_size lower")
            ) from error
        if result.is_finite:
            self.num_skipped_in_row = 0
            self.metrics.append(
                CheckpointMetrics(
                    step=self.step,
                    loss=result.loss,
                    learning_rate=rate,
                    gradient_norm=result.gradient_norm,
                    num_tokens=result.num_tokens,
                    seconds=time.perf_counter() - started,
                )
            )
        else:
            self._skip_step(result)
        return result

    def _skip_step(self, result: StepResult) -> None:
        self.num_skipped_steps += 1
        self.num_skipped_in_row += 1
        if self.num_skipped_in_row >= _MAX_SKIPPED_IN_ROW or self.step == self.num_steps == self.num_skipped_steps:
            folder = None if self.checkpoint is None else layout.checkpoint_folder(self.plan.training_id, self.checkpoint.step)
            kept = "there is no checkpoint yet" if folder is None else f"the last good checkpoint is {self.storage.url(folder)}"
            raise TrainingError(
                f"{self.plan.training_id}: the loss ({result.loss}) or its gradient (norm {result.gradient_norm}) is not finite in step "
                f"{self.step}, the {self.num_skipped_in_row}. in a row; {kept}. "
                "Use a smaller training.learning_rate or a longer warm-up"
            )

    def _publish_checkpoint(self) -> CheckpointManifest:
        checkpoint = publish_checkpoint(
            self.storage,
            self.plan.training_id,
            self.step,
            self.optimization.model,
            self.optimization.optimizer,
            self.metrics,
            self.tokenizer_files,
            self.num_skipped_steps,
            self.num_skipped_in_row,
            self.plan.recipe.as_json(),
        )
        self.tracker.publish(self.metrics, self.step)
        config = self.plan.config
        delete_old_checkpoints(
            self.storage, self.plan.training_id, self.step, config.keep_checkpoints, config.milestone_every_steps
        )
        return checkpoint

    def _publish_manifest(self, checkpoint: CheckpointManifest) -> TrainingManifest:
        manifest = TrainingManifest(
            training_id=self.plan.training_id,
            recipe=self.plan.recipe.as_json(),
            checkpoint=layout.checkpoint_folder(self.plan.training_id, checkpoint.step),
            weights_digest=checkpoint.weights_digest,
            num_parameters=count_parameters(self.optimization.model),
            num_steps=self.num_steps,
            num_tokens=sum(row.num_tokens for row in self.metrics),
            num_sequences=count_training_sequences(self.plan.config, self.order.num_sequences),
            num_skipped_steps=self.num_skipped_steps,
            final_loss=self.metrics[-1].loss,
            seconds=sum(row.seconds for row in self.metrics),
            device=str(self.plan.device),
            files=checkpoint.exported_files(),
            data_ids=self.plan.inputs.list_ids(),
            versions=list_versions(),
        )
        self.storage.write_json(layout.training_manifest(self.plan.training_id), manifest.as_json())
        return manifest

    def _report(self, detail: str) -> None:
        self.on_progress(Progress(f"train {self.plan.training_id}", self.step, self.num_steps, "steps", detail))
