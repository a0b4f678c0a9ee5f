"""Trains a model from a plan to its manifest, from the last good checkpoint where there is one."""

from __future__ import annotations

import time

import torch

from miniplm import layout
from miniplm.errors import TrainingError
from miniplm.models.architectures import count_parameters
from miniplm.models.devices import describe_memory, is_out_of_memory
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CheckpointMetrics, TrainingManifest
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage
from miniplm.training.checkpoints import (
    delete_old_checkpoints,
    find_last_checkpoint,
    is_milestone,
    publish_checkpoint,
    restore_checkpoint,
)
from miniplm.training.data import SequenceOrder, check_batch_size, count_steps, count_training_sequences
from miniplm.training.meter import TrainingMeter
from miniplm.training.numerics import training_numerics
from miniplm.training.optimization import GlobalBatch, Optimization, StepResult, is_compiled
from miniplm.training.parallel import ProcessGroup
from miniplm.training.reading import ReadAhead
from miniplm.training.recipe import TrainingPlan
from miniplm.training.records import CheckpointManifest, find_training
from miniplm.training.schedule import learning_rate
from miniplm.training.start import build_start
from miniplm.training.tokenizer_files import make_tokenizer_files
from miniplm.training.tracking import Tracker
from miniplm.versions import list_versions

# Steps in a row without a finite gradient after which training gives up. One may be a bad batch; after three the weights are at fault, as
# they stay what they were.
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
    device = group.device(plan.device)
    with group.connected(device):
        if not group.is_first:
            return _join_training(storage, plan, group, device)
        with exclusive(storage, layout.training_folder(plan.training_id), f"training {plan.training_id}"):
            # Asked only now that nobody else trains it.
            manifest = find_training(storage, plan.training_id)
            if manifest is None:
                storage.delete_temporary_files(layout.training_folder(plan.training_id))
            group.share(manifest)
            if manifest is None:
                tracking = Tracker(storage, plan.training_id, plan.config, plan.recipe.as_json())
                with training_numerics(device), tracking as tracker:
                    manifest = _Training(storage, plan, on_progress, group, device, tracker).run()
            return manifest


def _join_training(storage: Storage, plan: TrainingPlan, group: ProcessGroup, device: torch.device) -> TrainingManifest:
    """What a process other than the first does: it is told whether there is something to train, and computes its part."""
    finished: TrainingManifest | None = group.share(None)
    if finished is not None:
        return finished
    with training_numerics(device):
        return _Training(storage, plan, ignore_progress, group, device).run()


class _Training:
    """A training under way: `step` optimizer steps are done, `metrics` has a row for each but the skipped ones.

    All processes of its group do the same but for storage, progress and curves, which are the first one's.
    """

    def __init__(
        self,
        storage: Storage,
        plan: TrainingPlan,
        on_progress: ProgressCallback,
        group: ProcessGroup,
        device: torch.device,
        tracker: Tracker | None = None,
    ) -> None:
        self.storage = storage
        self.plan = plan
        self.on_progress = on_progress
        self.group = group
        self.device = device
        self.tracker = tracker
        recipe, config = plan.recipe, plan.config
        self.order = SequenceOrder(storage, plan.list_shards(storage), config.seed)
        self.num_sequences = count_training_sequences(config, self.order.num_sequences)
        self.num_steps = count_steps(config, self.order.num_sequences)
        check_batch_size(config, self.order.num_sequences)
        # From the seed in each process, and not sent from the first: the same arguments give the same weights.
        model = build_start(storage, plan)
        model.config.eos_token_id = model.generation_config.eos_token_id = recipe.eos_token_id
        # Not in the model's own configuration: there it would keep the embedding of EOS from learning.
        model.generation_config.pad_token_id = recipe.eos_token_id
        self.tokenizer_files = make_tokenizer_files(plan.load_tokenizer(storage), model.config)
        self.meter = TrainingMeter(model, device, recipe.training["dtype"], self.order.num_tokens / self.order.num_sequences, group)
        self.optimization = Optimization(
            model if group.is_sharded else model.to(device),
            plan.method.make_loss(storage, plan.inputs, device, is_compiled(config, device)),
            config,
            recipe.training["dtype"],
            recipe.eos_token_id,
            group,
            device,
            recipe.max_positions,
        )
        self.step = 0
        self.metrics: list[CheckpointMetrics] = []
        self.num_skipped_steps = 0
        self.num_skipped_in_row = 0
        # Looked for by one of them, so that all processes go on at the same step.
        self.checkpoint = group.share(find_last_checkpoint(storage, plan.training_id, recipe.as_json()) if group.is_first else None)
        if self.checkpoint is not None:
            with self.optimization.restoring() as (whole_model, optimizer):
                self.metrics = restore_checkpoint(storage, self.checkpoint, whole_model, optimizer)
            self.step = self.checkpoint.step
            self.optimization.goes_on_with(self.checkpoint.micro_batch_size)
            self.num_skipped_steps = self.checkpoint.num_skipped_steps
            self.num_skipped_in_row = self.checkpoint.num_skipped_in_row

    def run(self) -> TrainingManifest:
        self._report("")
        self.order.read_ahead_to(self.num_sequences)
        try:
            with ReadAhead(self._read_batch, range(self.step + 1, self.num_steps + 1)) as batches:
                self.meter.start()
                while self.step < self.num_steps:
                    result = self._take_step(batches)
                    self.meter.add(result.num_tokens, batches.wait_seconds)
                    if self._is_checkpoint_due():
                        self.checkpoint = self._publish_checkpoint()
                    rate = learning_rate(self.plan.config, self.step, self.num_steps)
                    self._report(
                        f"loss {result.loss:.3f}, gradient norm {result.gradient_norm:.3g}, learning rate {rate:.3g}, "
                        + self.meter.describe()
                    )
        finally:
            self.order.close()
        assert self.checkpoint is not None
        return self._publish_manifest(self.checkpoint)

    def _read_batch(self, step: int) -> GlobalBatch:
        start = (step - 1) * self.plan.config.batch_size
        return self.optimization.prepare(self.order.read(start, min(start + self.plan.config.batch_size, self.num_sequences)))

    def _take_step(self, batches: ReadAhead[GlobalBatch]) -> StepResult:
        started = time.perf_counter()
        config = self.plan.config
        self.step += 1
        rate = learning_rate(config, self.step, self.num_steps)
        try:
            result = self.optimization.apply(batches.take(), rate)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = self.optimization.micro_batch_size
            raise TrainingError(
                f"{self.plan.training_id}: memory ran out in step {self.step} with {size} sequences a forward pass "
                f"({describe_memory(self.device)}); "
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

    def _is_checkpoint_due(self) -> bool:
        config = self.plan.config
        is_due = self.step % config.checkpoint_every_steps == 0 or is_milestone(self.step, config.milestone_every_steps)
        return is_due or self.step == self.num_steps

    def _publish_checkpoint(self) -> CheckpointManifest:
        model, optimizer = self.optimization.gather()
        checkpoint = None
        if self.group.is_first:
            checkpoint = publish_checkpoint(
                self.storage,
                self.plan.training_id,
                self.step,
                model,
                optimizer,
                self.metrics,
                self.tokenizer_files,
                self.num_skipped_steps,
                self.num_skipped_in_row,
                self.plan.recipe.as_json(),
                self.optimization.micro_batch_size,
            )
            if self.tracker is not None:
                self.tracker.publish(self.metrics, self.step)
            config = self.plan.config
            delete_old_checkpoints(
                self.storage, self.plan.training_id, self.step, config.keep_checkpoints, config.milestone_every_steps
            )
        published = self.group.share(checkpoint)
        assert published is not None
        return published

    def _publish_manifest(self, checkpoint: CheckpointManifest) -> TrainingManifest:
        manifest = TrainingManifest(
            training_id=self.plan.training_id,
            recipe=self.plan.recipe.as_json(),
            checkpoint=layout.checkpoint_folder(self.plan.training_id, checkpoint.step),
            weights_digest=checkpoint.weights_digest,
            num_parameters=count_parameters(self.optimization.model),
            num_steps=self.num_steps,
            num_tokens=sum(row.num_tokens for row in self.metrics),
            num_sequences=self.num_sequences,
            num_skipped_steps=self.num_skipped_steps,
            final_loss=self.metrics[-1].loss,
            seconds=sum(row.seconds for row in self.metrics),
            device=str(self.plan.device),
            num_processes=self.group.world_size,
            data_wait_share=self.meter.data_wait_share,
            matmul_peak_share=self.meter.matmul_peak_share,
            files=checkpoint.exported_files(),
            data_ids=self.plan.inputs.list_ids(),
            versions=list_versions(),
        )
        if self.group.is_first:
            self.storage.write_json(layout.training_manifest(self.plan.training_id), manifest.as_json())
        # Also so that no process goes before the last thing is written.
        return self.group.share(manifest)

    def _report(self, detail: str) -> None:
        self.on_progress(Progress(f"train {self.plan.training_id}", self.step, self.num_steps, "steps", detail))
