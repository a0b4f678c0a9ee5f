"""The part of the configuration that is about training: how a model is trained, and the students."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from miniplm.config.fields import LARGEST_SEED, Location, Name, Section
from miniplm.config.methods import METHOD_FACTS, Method

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

LOCATION = "hub id, folder or URL (s3://...)"
ARCHITECTURE = f"preset (`miniplm config --architectures` lists them), or the {LOCATION} of a config.json"
VOCAB_SIZE = "rows of the embedding; null: the tokenizer's size, rounded up to a multiple of 64"


class TrainingConfig(Section):
    """AdamW with warm-up and decay; the defaults are the published ones (arXiv 2410.17215, appendix)."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; give either `steps` or `epochs`")
    epochs: float | None = Field(None, gt=0, description="passes over the training sequences; give either `steps` or `epochs`")
    batch_size: int = Field(512, ge=1, description="sequences an optimizer step, over all micro-batches")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="sequences a forward and backward pass; null: at most 8, a divisor of batch_size; on a GPU as many more as keep it busy "
        "and fit, and half as many each time that memory runs out, which changes a training's numbers by rounding only",
    )
    learning_rate: float = Field(6e-4, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "warmup-stable-decay"] = Field(
        "cosine",
        description="learning rate after the warm-up: cosine: falls to the end; warmup-stable-decay: stays at the peak, then falls in a line "
        "over the last `decay_share` of the steps",
    )
    decay_share: float = Field(
        0.2, gt=0, le=1, description="warmup-stable-decay: share of all steps in which the learning rate falls"
    )
    min_learning_rate_ratio: float = Field(0.1, ge=0, le=1, description="learning rate at the end, as a share of the peak")
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description="optimizer steps of linear warm-up; null: 2000, the published number, or a tenth of a run of fewer than 20,000 steps",
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay of AdamW")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW decay rate of the first moment")
    beta2: float = Field(0.98, ge=0, lt=1, description="AdamW decay rate of the second moment")
    epsilon: float = Field(1e-6, gt=0, description="AdamW epsilon")
    clip_norm: float = Field(1.0, gt=0, description="largest global gradient norm")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of the initial weights and of the order of sequences")
    dtype: Dtype = Field(
        "auto", description="precision of the computation (weights stay float32); auto: float32 on a CPU, bfloat16 on a GPU"
    )
    checkpoint_every_steps: int = Field(
        1000, ge=1, description="optimizer steps between checkpoints; a killed run redoes at most these"
    )
    keep_checkpoints: int = Field(2, ge=1, description="how many of the last checkpoints are kept")
    milestone_every_steps: int | None = Field(
        None,
        ge=1,
        description="optimizer steps between checkpoints that are kept for good, for loss curves on held-out text and fits; null: none",
    )
    processes: int | Literal["auto"] = Field(
        "auto",
        description="processes that train together on one machine, each with its share of a batch; auto: one a GPU, on a CPU one",
    )
    sharding: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="with several processes: ddp: each holds the whole model; fsdp: weights and optimizer state are split among them",
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="torch.compile of the model; auto: on a GPU. A model that does not compile runs as it is"
    )
    wandb_project: str | None = Field(
        None,
        min_length=1,
        description="project of Weights & Biases to log to (needs the package wandb and its login); null: TensorBoard files only",
    )

    @model_validator(mode="after")
    def _check_length(self) -> TrainingConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` (optimizer steps) and `epochs` (passes over the sequences)")
        if self.steps is not None and (self.warmup_steps or 0) > self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but the training has {self.steps} steps; give fewer warm-up steps, or train longer"
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}")
        if self.processes != "auto" and self.processes < 1:
            raise ValueError(f"processes is {self.processes}; it must be at least 1, or auto")
        return self

    def resolve_warmup_steps(self, num_steps: int) -> int:
        """Optimizer steps of warm-up in a run of `num_steps`, whose number the data may decide: at most all of them."""
        return min(2000, num_steps // 10) if self.warmup_steps is None else min(self.warmup_steps, num_steps)

    def resolve_micro_batch_size(self) -> int:
        """Sequences a forward pass, as a training's id has it: the given number, or the largest divisor of `batch_size` up to 8.

        Where none is given a GPU may take more (`training.micro_batches`).
        """
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        return max(size for size in range(1, min(8, self.batch_size) + 1) if self.batch_size % size == 0)


class DistillationConfig(Section):
    """Vanilla knowledge distillation: loss = (1 - kl_weight) * cross entropy + kl_weight * KL(teacher || student), in nats a token."""

    kl_weight: float = Field(0.5, gt=0, le=1, description="weight of the KL divergence from the teacher's distribution, in (0, 1]")


class GenerationConfig(Section):
    """Sequence-level distillation: the teacher goes on from the first tokens of each sequence."""

    prompt_tokens: int = Field(
        768, ge=1, description="tokens of a sequence that stay; the teacher samples the rest (published: 768 of 1024)"
    )
    temperature: float = Field(1.0, gt=0, description="logits are divided by it before sampling")
    top_p: float = Field(
        1.0, gt=0, le=1, description="sample among the likeliest tokens that together have this probability; 1: all"
    )
    seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="seed of the sampling; a sequence's text depends on it and on the sequence alone"
    )
    sequences_per_batch: int | Literal["auto"] = Field(
        "auto", description="sequences that are generated together; halved by itself when memory runs out"
    )
    sequences_per_shard: int = Field(1024, ge=1, description="sequences a shard of generated text: the unit of retry")


class StudentConfig(Section):
    """A model to pre-train on what was selected, or on a baseline's data."""

    name: Name = Field(description="name of the student in this run: letters, digits, '.', '_', '-'")
    architecture: Location = Field(description=ARCHITECTURE)
    vocab_size: int | None = Field(None, ge=2, description=VOCAB_SIZE)
    tokenizer: Location | None = Field(
        None,
        description=f"{LOCATION} of the student's own tokenizer: its training text is decoded, encoded again and packed anew, once; "
        "null: the corpus's",
    )
    eos_token: str | None = Field(None, description="with `tokenizer`: the token that separates documents; null: its own EOS token")
    method: Method = Field(
        "miniplm",
        description="miniplm: the selection; pretrain: as many tokens drawn at random from the candidates; vanilla-kd: pretrain's text, with "
        "the teacher's token distributions; seqkd: pretrain's text, the end of each sequence written by the teacher; miniplm+vanilla-kd: "
        "the selection, with the teacher's token distributions",
    )
    flop_matched: bool = Field(
        False,
        description="vanilla-kd: train as many steps as cost, teacher included, what `training` costs without a teacher: "
        "steps * 3 N / (3 N + N_teacher), N in parameters",
    )
    distillation: DistillationConfig = DistillationConfig()
    generation: GenerationConfig = GenerationConfig()
    training: TrainingConfig

    @property
    def is_distilled(self) -> bool:
        """Whether the teacher runs along in training."""
        return METHOD_FACTS[self.method].has_teacher_along

    @model_validator(mode="after")
    def _check_student(self) -> StudentConfig:
        if self.is_distilled and self.tokenizer is not None:
            raise ValueError(
                f"student {self.name}: {self.method} compares distributions over the teacher's vocabulary, so the student cannot have a "
                "tokenizer of its own; leave `tokenizer` out, or use method miniplm or seqkd, which need only text"
            )
        if self.eos_token is not None and self.tokenizer is None:
            raise ValueError(
                f"student {self.name}: eos_token goes with a `tokenizer` of the student's own; the corpus has its own eos_token"
            )
        if self.flop_matched and not self.is_distilled:
            raise ValueError(
                f"student {self.name}: flop_matched is for methods with a teacher in training (vanilla-kd, miniplm+vanilla-kd), not {self.method}"
            )
        return self
