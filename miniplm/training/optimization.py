"""One optimizer step: the gradient of a global batch, made in micro-batches, clipped, and given to AdamW."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from miniplm.config.run import TrainingConfig
from miniplm.errors import first_line
from miniplm.models.attention import use_attention_in_rows
from miniplm.models.devices import free_cached_memory, is_out_of_memory, use_device
from miniplm.models.lengths import depends_on_length
from miniplm.models.loading import split_head
from miniplm.training.data import MicroBatch, collate, count_scored_targets
from miniplm.training.loss_module import LossModule
from miniplm.training.losses import LossFunction
from miniplm.training.micro_batches import choose_on_device
from miniplm.training.numerics import run_deterministically
from miniplm.training.parallel import ParallelModule, ProcessGroup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger("miniplm")

# Token ids of each, (num_tokens,).
Sequences = Sequence[NDArray[np.unsignedinteger]]


@dataclass(frozen=True)
class GlobalBatch:
    """A global batch as one process has it: its own micro-batches on the host, as many as any process has; counts are of all."""

    micro_batches: tuple[MicroBatch, ...]
    num_scored: int
    num_tokens: int


@dataclass(frozen=True)
class StepResult:
    """Mean loss in nats a scored target of the global batch, and the gradient's norm before clipping."""

    loss: float
    gradient_norm: float
    num_tokens: int

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def is_compiled(config: TrainingConfig, device: torch.device) -> bool:
    """Whether a model is trained under torch.compile."""
    return config.compile is True or (config.compile == "auto" and device.type == "cuda")


def _drop_masks(model: PreTrainedModel) -> None:
    """Has the model attend without masks wherever that is the same: an eager GPU does not wait for one, a compiled body reads none."""
    body, head = split_head(model)
    if reason := use_attention_in_rows(body, head.weight_VH.shape[0]):
        _log.info("%s is trained with its own attention, more slowly: %s", type(model).__name__, reason)


class Optimization:
    """A model in training: float32 weights and AdamW, computing in `dtype` (float32 or bfloat16 by autocast).

    The model is on `device` already, but for one whose weights are to be split among processes. Under autocast a weight
    is rounded to bfloat16 once a micro-batch; a second copy of all weights would save about 1 % of a step at best.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        loss_function: LossFunction,
        config: TrainingConfig,
        dtype: str,
        eos_token_id: int,
        group: ProcessGroup = ProcessGroup(),  # noqa: B008 - it is immutable
        device: torch.device | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """`max_tokens` of the longest sequence: micro-batches are then filled up to one shape wherever the model is compiled.

        A model whose numbers depend on the length of its input always reads that many tokens: else what a sequence gives would be
        decided by those beside it.
        """
        self.model = model
        self.device = next(model.parameters()).device if device is None else device
        self._config = config
        self._eos_token_id = eos_token_id
        self._group = group
        module = LossModule(model, loss_function, dtype)
        compiles = is_compiled(config, self.device)
        if compiles or self.device.type == "cuda":
            _drop_masks(model)
        self._compiles = compiles
        self._num_tokens = max_tokens if max_tokens is not None and (compiles or depends_on_length(model.config)) else None
        self.micro_batch_size = config.resolve_micro_batch_size()
        if max_tokens is not None:
            chosen = choose_on_device(config, model, max_tokens - 1, dtype, self.device, group.world_size)
            # One size for all: they deal out the same batch by it, and the GPUs may have different amounts of memory free.
            self.micro_batch_size = group.least(chosen, self.device)
        self._parallel = ParallelModule(module, group, self.device)
        if compiles and group.is_sharded:
            module.compile_layers()
        elif compiles:
            module.compile_body()
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over weights and moments instead of one for each operation; on a CPU too
        )

    def prepare(self, sequences: Sequences) -> GlobalBatch:
        """This process's part of a global batch: of all micro-batches each `world_size`-th. Needs no device, and may run in another thread."""
        size, group = self.micro_batch_size, self._group
        shape = None if self._num_tokens is None else (size if self._compiles else 1, self._num_tokens)
        starts = range(0, len(sequences), size)
        own = [sequences[start : start + size] for start in starts[group.rank :: group.world_size]]
        # One that has fewer than the first process is given an empty one: all take part in each round.
        own += [[np.array([self._eos_token_id], np.uint32)]] * (-(-len(starts) // group.world_size) - len(own))
        # Two tokens wide at least: an empty micro-batch needs an input, as its process takes part in the pass.
        micro_batches = [collate(part, self._eos_token_id, shape or (1, 2)) for part in own]
        if self.device.type == "cuda":
            # By default a thread pins memory through the first GPU, which another process may be using.
            with use_device(self.device):
                micro_batches = [batch.pin() for batch in micro_batches]
        num_tokens = sum(len(sequence) for sequence in sequences)
        return GlobalBatch(tuple(micro_batches), count_scored_targets(sequences, self._eos_token_id), num_tokens)

    def take_step(self, sequences: Sequences, learning_rate: float) -> StepResult:
        """Trains on one global batch, which is prepared here and now; otherwise as `apply`."""
        return self.apply(self.prepare(sequences), learning_rate)

    def apply(self, batch: GlobalBatch, learning_rate: float) -> StepResult:
        """Trains on one global batch. Where loss or gradient is not finite, weights and moments stay as they are, in all processes.

            loss = sum of NLL over all micro-batches / scored targets of all micro-batches

        so that the size of micro-batches and the number of processes change rounding only.
        """
        result = self._compute_gradient_as_fits(batch)
        if result.is_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        return result

    def goes_on_with(self, micro_batch_size: int | None) -> None:
        """Has a resumed training go on with the sequences a pass that its checkpoint had, where the device was to choose them."""
        if micro_batch_size is not None and self._chooses and self.device.type == "cuda":
            self.micro_batch_size = micro_batch_size

    @property
    def _chooses(self) -> bool:
        return self._config.micro_batch_size is None

    def _compute_gradient_as_fits(self, batch: GlobalBatch) -> StepResult:
        """The gradient, with half as many sequences a pass each time that memory runs out; raises the last error where that is of no help.

        A given number is taken as it is, and in a group no process can tell the others that its own passes are to be shorter.
        """
        while True:
            try:
                return run_deterministically(lambda: self._compute_gradient(batch), type(self.model).__name__)
            except (RuntimeError, MemoryError) as error:
                size = self.micro_batch_size
                if not (is_out_of_memory(error) and self._chooses and self._group.is_alone and size > 1):
                    raise
                reason = first_line(error)
            # Now that the error holds nothing of the pass any more.
            self.micro_batch_size = size // 2
            self.optimizer.zero_grad(set_to_none=True)
            free_cached_memory()
            _log.warning(
                "memory ran out with %d sequences a forward pass (%s); training goes on with %d, which changes its numbers by rounding only",
                size,
                reason,
                size // 2,
            )

    def compute_gradient(self, sequences: Sequences) -> StepResult:
        """Leaves the clipped gradient of the global batch in the parameters. The loss of nothing scored is NaN."""
        return self._compute_gradient(self.prepare(sequences))

    def _compute_gradient(self, batch: GlobalBatch) -> StepResult:
        # To none: the first micro-batch then writes the gradient instead of adding to zeros.
        self.optimizer.zero_grad(set_to_none=True)
        micro_batches = batch.micro_batches if batch.num_scored else ()
        if self._group.is_alone:
            # Those made before memory ran out have more sequences than a pass has now.
            parts = (part for made in micro_batches for part in made.split(self.micro_batch_size))
            micro_batches = tuple(part for part in parts if len(part.scored_N))
        totals = []
        for index, part in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            totals.append(self._parallel.add_gradient(part.to(self.device), batch.num_scored, is_last))
        # Float64: the order of micro-batches, which is another with another number of processes, then shows in the last bits only.
        total = torch.stack(totals).cpu().double().sum().item() if totals else 0.0
        total = self._group.add(total, self.device)
        loss = total / batch.num_scored if batch.num_scored else math.nan
        return StepResult(loss, self._parallel.clip_gradient(self._config.clip_norm), batch.num_tokens)

    def gather(self) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
        """The whole model and an optimizer that holds its moments, for a checkpoint; complete in the first process. All processes call it."""
        return self._parallel.gather(self.optimizer)

    @contextmanager
    def restoring(self) -> Iterator[tuple[PreTrainedModel, torch.optim.Optimizer]]:
        """The whole model and optimizer, to put a checkpoint's weights and moments into; each process does."""
        model, optimizer = self.gather()
        yield model, optimizer
        self._parallel.scatter(optimizer, self.optimizer)
