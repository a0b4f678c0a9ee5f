"""The sides of the training benchmark: the published practice, the transformers Trainer, and MiniPLM.

Each trains a fresh model of the same architecture on the same sequences, so many warm-up steps and so many timed ones.

Shapes: B sequences, S inputs of each, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.training_inputs import TrainingInputs
from miniplm import layout
from miniplm.config.run import TrainingConfig
from miniplm.models.architectures import build_model
from miniplm.models.devices import synchronize
from miniplm.training.checkpoints import find_checkpoint, read_metrics
from miniplm.training.loop import train_model

_LEARNING_RATE = 6e-4
# What cross entropy leaves out.
_IGNORED = -100


@dataclass(frozen=True)
class Length:
    """Steps of `batch_size` sequences: the first `warm_up_steps` are not timed."""

    batch_size: int
    warm_up_steps: int
    timed_steps: int

    @property
    def num_steps(self) -> int:
        return self.warm_up_steps + self.timed_steps


@dataclass(frozen=True)
class SideRun:
    """Seconds of the timed steps and the tokens of their sequences, seconds of all before, and what is to be said of the side."""

    seconds: float
    num_tokens: int
    start_up_seconds: float
    last_loss: float
    details: dict[str, Any] = field(default_factory=dict)


def run_published(inputs: TrainingInputs, length: Length, micro_batch_size: int, pure_half: bool = False) -> SideRun:
    """The published practice: fp16 with a loss scaler (on a CPU float32), whole logits turned into float32, plain AdamW, nothing read ahead.

    By default autocast over float32 weights, and a mask of what is padded. With `pure_half` what DeepSpeed's fp16 does: weights and
    gradients in fp16 beside a float32 copy that the optimizer steps, and a mask of ones.
    """
    started, device = time.perf_counter(), inputs.device
    is_half = device.type == "cuda"
    half_weights = pure_half and is_half
    model = _build(inputs)
    masters = [parameter.detach().clone() for parameter in model.parameters()] if half_weights else list(model.parameters())
    if half_weights:
        model = model.half()
    optimizer = torch.optim.AdamW(masters, lr=_LEARNING_RATE, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    scaler = torch.amp.GradScaler(device.type, enabled=is_half)
    num_accumulated = length.batch_size // micro_batch_size
    begun, num_tokens, loss_value = started, 0, 0.0
    for step, sequences in enumerate(_global_batches(inputs, length)):
        if step == length.warm_up_steps:
            synchronize(device)
            begun, num_tokens = time.perf_counter(), 0
        model.zero_grad()
        loss_value = 0.0
        for start in range(0, length.batch_size, micro_batch_size):
            part = sequences[start : start + micro_batch_size]
            token_ids, labels, attention = (tensor.to(device) for tensor in _pad(part, inputs))
            if pure_half:
                attention = torch.ones_like(attention)
            with torch.autocast(device.type, dtype=torch.float16, enabled=is_half and not half_weights):
                logits_BSV = model(input_ids=token_ids, attention_mask=attention, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits_BSV.float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED)
            scaler.scale(loss / num_accumulated).backward()
            loss_value += loss.item() / num_accumulated
            num_tokens += sum(map(len, part))
        if half_weights:
            for master, parameter in zip(masters, model.parameters(), strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        if half_weights:
            with torch.no_grad():
                for master, parameter in zip(masters, model.parameters(), strict=True):
                    parameter.copy_(master)
    synchronize(device)
    details = {
        "dtype": "float16" if is_half else "float32",
        "micro_batch_size": micro_batch_size,
        "head": "whole logits",
        "compiled": False,
    }
    return SideRun(time.perf_counter() - begun, num_tokens, begun - started, loss_value, details)


def run_trainer(inputs: TrainingInputs, length: Length, micro_batch_size: int) -> SideRun:
    """transformers' Trainer: on a GPU bf16, compiled, with Liger's kernels where liger-kernel is installed; fused AdamW."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    started, device = time.perf_counter(), inputs.device
    on_gpu = device.type == "cuda"
    has_liger = on_gpu and find_spec("liger_kernel") is not None
    marks: dict[int, float] = {}

    class Clock(TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **options: Any) -> None:
            if state.global_step in (length.warm_up_steps, length.num_steps):
                synchronize(device)
                marks[state.global_step] = time.perf_counter()

    arguments = TrainingArguments(
        output_dir=inputs.storage.path("trainer"),
        max_steps=length.num_steps,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=length.batch_size // micro_batch_size,
        learning_rate=_LEARNING_RATE,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        bf16=on_gpu,
        torch_compile=on_gpu,
        use_liger_kernel=has_liger,
        use_cpu=not on_gpu,
        dataloader_num_workers=2 if on_gpu else 0,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Token ids, labels and attention mask, (B, S) each."""
        token_ids, labels, attention = _pad([row["sequence"] for row in rows], inputs)
        # The model itself moves labels by one; ours are moved already.
        labels = torch.nn.functional.pad(labels, (1, 0), value=_IGNORED)[:, :-1]
        return {"input_ids": token_ids, "labels": labels, "attention_mask": attention}

    rows = [{"sequence": sequence} for sequence in inputs.read_sequences()]
    trainer = Trainer(model=_build(inputs), args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()])
    loss = trainer.train().training_loss
    seconds = marks[length.num_steps] - marks[length.warm_up_steps]
    num_tokens = round(inputs.num_tokens / inputs.num_sequences * length.batch_size * length.timed_steps)
    details = {
        "dtype": "bfloat16" if on_gpu else "float32",
        "micro_batch_size": micro_batch_size,
        "head": "liger" if has_liger else "whole logits",
        "compiled": on_gpu,
    }
    return SideRun(seconds, num_tokens, marks[length.warm_up_steps] - started, loss, details)


def run_ours(
    inputs: TrainingInputs,
    length: Length,
    micro_batch_size: int | None,
    dtype: Literal["auto", "bfloat16"] = "auto",
) -> SideRun:
    """MiniPLM as a run trains: from shards on disk to a published checkpoint, which is not in the timed steps.

    Without `micro_batch_size` it is MiniPLM's own choice.
    """
    started = time.perf_counter()
    config = TrainingConfig(
        steps=length.num_steps,
        batch_size=length.batch_size,
        micro_batch_size=micro_batch_size,
        learning_rate=_LEARNING_RATE,
        warmup_steps=1,
        checkpoint_every_steps=length.num_steps,
        dtype=dtype,
    )
    plan = inputs.plan(config)
    moments: list[float] = []
    inputs.storage.delete(layout.training_folder(plan.training_id))
    manifest = train_model(inputs.storage, plan, lambda progress: moments.append(time.perf_counter()))
    rows = read_metrics(inputs.storage, manifest.training_id, manifest.num_steps)
    checkpoint = find_checkpoint(inputs.storage, manifest.training_id, manifest.num_steps)
    assert checkpoint is not None
    timed = rows[length.warm_up_steps :]
    details = {
        "dtype": plan.recipe.training["dtype"],
        "micro_batch_size": checkpoint.micro_batch_size,
        "head": "in blocks",
        "compiled": inputs.device.type == "cuda",
        "data_wait_share_with_start": manifest.data_wait_share,
    }
    seconds = sum(row.seconds for row in timed)
    return SideRun(seconds, sum(row.num_tokens for row in timed), moments[length.warm_up_steps] - started, rows[-1].loss, details)


def _build(inputs: TrainingInputs) -> Any:
    model = build_model(inputs.architecture, inputs.vocab_size, inputs.corpus.sequence_length + 1, 0)
    return model.to(inputs.device).train()


def _global_batches(inputs: TrainingInputs, length: Length) -> Iterator[list[list[int]]]:
    sequences = inputs.read_sequences()
    for step in range(length.num_steps):
        yield sequences[step * length.batch_size : (step + 1) * length.batch_size]


def _pad(sequences: list[list[int]], inputs: TrainingInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and attention mask (B, S), padded to the corpus' sequence length; a target after EOS is left out."""
    eos_token_id = inputs.corpus.tokenizer.eos_token_id
    shape = (len(sequences), inputs.corpus.sequence_length)
    token_ids, labels = torch.full(shape, eos_token_id), torch.full(shape, _IGNORED)
    attention = torch.zeros(shape, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        values = torch.tensor(sequence)
        num_inputs = len(sequence) - 1
        token_ids[row, :num_inputs], attention[row, :num_inputs] = values[:-1], 1
        labels[row, :num_inputs] = torch.where(values[:-1] == eos_token_id, _IGNORED, values[1:])
    return token_ids, labels, attention
