"""The configuration of a run: one YAML file, checked whole before anything starts.

Every field carries its meaning and unit; `miniplm config --schema` prints them. Unknown keys are refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ScoringDtype = Literal["auto", "float32", "bfloat16", "float16", "fp8"]

# `://user:password@`, also where the password holds slashes, `://user@`, and the signature of a presigned URL.
_CREDENTIALS = re.compile(r"://[^@/]*@|://[^@]*:[^@]*@|[?&](X-Amz-|sig=|Signature=|AWSAccessKeyId=)", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: letters, digits, '.', '_' and '-' only, at most 100, a letter or digit first")
    return name


def _check_url(url: str) -> str:
    if not url:
        raise ValueError("is empty; give a folder or an fsspec URL such as s3://bucket/prefix")
    if _CREDENTIALS.search(url):
        raise ValueError("holds credentials; keep them in the environment (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)")
    return url


Name = Annotated[str, AfterValidator(_check_name)]
Url = Annotated[str, AfterValidator(_check_url)]


class Section(BaseModel):
    """A part of the configuration: immutable, and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceConfig(Section):
    """Where documents come from. Exactly one of `domain` and `domain_name` says to which domain they belong."""

    path: Url = Field(
        description="fsspec URL or path of files, with wildcards (`*`, `**`, `?`, `[..]`); for `format: text` also a folder"
    )
    format: Literal["jsonl", "parquet", "text"] = Field(
        "jsonl",
        description="jsonl: one JSON object a line, plain or .gz, .zst, .bz2; parquet: one document a row; text: one document a file",
    )
    text: str = Field(
        "text",
        min_length=1,
        description="dotted path of the field that holds the text, e.g. `text` or `content.body`; not used for `format: text`",
    )
    domain: str | None = Field(None, description="dotted path of the field that holds the domain, e.g. `meta.pile_set_name`")
    domain_name: str | None = Field(None, min_length=1, description="the one domain of all documents of this source")

    @model_validator(mode="after")
    def _check_domain(self) -> SourceConfig:
        if (self.domain is None) == (self.domain_name is None):
            raise ValueError(
                "give exactly one of `domain` (dotted path of the field that holds it) and `domain_name` (one domain for the whole source)"
            )
        if self.format == "text" and self.domain is not None:
            raise ValueError("text files have no fields: give `domain_name` instead of `domain`")
        return self


class SplitsConfig(Section):
    """Which shares of the documents are set aside; the rest are candidates. A document is in one split only."""

    reference: float = Field(0.05, ge=0, lt=1, description="share of documents that train the reference model, in [0, 1)")
    heldout: float = Field(0.01, ge=0, lt=1, description="share of documents kept for evaluation, in [0, 1)")

    @model_validator(mode="after")
    def _check_sum(self) -> SplitsConfig:
        if self.reference + self.heldout >= 1:
            raise ValueError(
                f"reference + heldout is {self.reference + self.heldout:g}; it must be under 1, the rest are the candidates"
            )
        return self


class CorpusConfig(Section):
    """The corpus and how it is cut into sequences."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="where the documents come from, in this order")
    tokenizer: str = Field(min_length=1, description="hub id or folder of the tokenizer; teacher and reference must share it")
    eos_token: str | None = Field(None, description="the token that separates documents; null: the tokenizer's own EOS token")
    sequence_length: int = Field(1024, ge=2, description="targets a sequence; a sequence holds at most one token more")
    sequences_per_shard: int = Field(65536, ge=1, description="sequences a shard file; a shard is the unit of scoring and of retry")
    splits: SplitsConfig = SplitsConfig()
    seed: int = Field(0, ge=0, description="seed of the hash that puts a document into a split")
    extend: bool = Field(
        False,
        description="true: source files that are new since the last preparation with the same settings are added to that corpus as an "
        "extension, nothing old is prepared or scored again; false: the corpus is made of exactly the files found",
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the tokenizer; only for sources you trust")


_SCORING_DTYPE = (
    "auto: float32 on a CPU, bfloat16 on a GPU; fp8: linear layers in float8_e4m3 with a scale a row, the rest bfloat16, "
    "on GPUs that have it (H100, L40S, newer), once it has passed the fidelity gate (scoring.min_overlap)"
)


class ModelConfig(Section):
    """A causal language model that scores."""

    model: str = Field(min_length=1, description="hub id or folder of a transformers model with safetensors weights")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: ScoringDtype = Field("auto", description=f"precision of weights and activations; {_SCORING_DTYPE}")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model; only for sources you trust")


class TrainingConfig(Section):
    """AdamW with warm-up and cosine decay; the defaults are the published ones (arXiv 2410.17215, appendix)."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; give either `steps` or `epochs`")
    epochs: float | None = Field(None, gt=0, description="passes over the training sequences; give either `steps` or `epochs`")
    batch_size: int = Field(512, ge=1, description="sequences an optimizer step, over all micro-batches")
    micro_batch_size: int | None = Field(
        None, ge=1, description="sequences a forward and backward pass; null: at most 8, a divisor of batch_size"
    )
    learning_rate: float = Field(6e-4, gt=0, description="peak learning rate")
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
    seed: int = Field(0, ge=0, description="seed of the initial weights and of the order of sequences")
    dtype: Dtype = Field(
        "auto", description="precision of the computation (weights stay float32); auto: float32 on a CPU, bfloat16 on a GPU"
    )
    checkpoint_every_steps: int = Field(
        1000, ge=1, description="optimizer steps between checkpoints; a killed run redoes at most these"
    )
    keep_checkpoints: int = Field(2, ge=1, description="how many of the last checkpoints are kept")

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
        return self

    def resolve_warmup_steps(self, num_steps: int) -> int:
        """Optimizer steps of warm-up in a run of `num_steps`, whose number the data may decide: at most all of them."""
        return min(2000, num_steps // 10) if self.warmup_steps is None else min(self.warmup_steps, num_steps)

    def resolve_micro_batch_size(self) -> int:
        """Sequences a forward pass: the given number, or the largest divisor of `batch_size` up to 8."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        return max(size for size in range(1, min(8, self.batch_size) + 1) if self.batch_size % size == 0)


_ARCHITECTURE = "preset (`miniplm config --architectures` lists them) or a folder or hub id with a config.json"
_VOCAB_SIZE = "rows of the embedding; null: the tokenizer's size, rounded up to a multiple of 64"


class ReferenceConfig(Section):
    """The small scorer: trained here on the reference split (`architecture` and `training`), or given (`model`)."""

    model: str | None = Field(None, description="hub id or folder of a finished reference model")
    revision: str | None = Field(None, description="branch, tag or commit on the hub, with `model`")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model; only for sources you trust")
    architecture: str | None = Field(None, description=f"what to train: a {_ARCHITECTURE}")
    vocab_size: int | None = Field(None, ge=2, description=_VOCAB_SIZE)
    training: TrainingConfig | None = Field(None, description="how to train it, with `architecture`")
    dtype: ScoringDtype = Field("auto", description=f"precision it scores in; {_SCORING_DTYPE}")

    @model_validator(mode="after")
    def _check_kind(self) -> ReferenceConfig:
        if (self.model is None) == (self.architecture is None):
            raise ValueError("give exactly one of `model` (a finished model) and `architecture` (train one on the reference split)")
        if (self.architecture is None) != (self.training is None):
            raise ValueError("`architecture` and `training` go together: what to train, and how")
        return self


class ScoringConfig(Section):
    """How the two models run over the candidate shards. Of it, only `attention` changes the scores beyond rounding."""

    attention: Literal["sequence", "document"] = Field(
        "sequence",
        description="what a token sees: sequence: all before it in its packed sequence, across documents (the paper's); document: its own document only",
    )
    tokens_per_batch: int | Literal["auto"] = Field(
        "auto", description="tokens a forward pass, padding included; halved by itself when memory runs out"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$",
        description="auto (a GPU where there is one), cpu, cuda, cuda:N or mps; with auto and cuda a model larger than one GPU is spread over all",
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="torch.compile of the model; auto: on a GPU. A model that does not compile runs as it is"
    )
    min_overlap: float = Field(
        0.98,
        ge=0,
        le=1,
        description="fidelity gate: least share of the sequences selected by float32 scores that the chosen dtypes select too, in [0, 1]",
    )
    calibration_sequences: int = Field(
        1024,
        ge=16,
        description="sequences on which fp8 is compared with float32 before it may score; `score --calibrate N` takes N",
    )

    @model_validator(mode="after")
    def _check_budget(self) -> ScoringConfig:
        if self.tokens_per_batch != "auto" and self.tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch is {self.tokens_per_batch}; it must be at least 1, or auto")
        return self


class SelectionConfig(Section):
    """Difference Sampling: the floor(ratio * candidates) sequences with the largest difference score."""

    ratio: float = Field(0.5, gt=0, le=1, description="kept share of the candidate sequences, in (0, 1]")
    score: Literal["mean", "sum"] = Field("mean", description="mean: NLL a scored token; sum: NLL a sequence")
    seed: int = Field(0, ge=0, description="seed of the random draw that the `pretrain` baseline trains on")


class StudentConfig(Section):
    """A model to pre-train on what was selected, or on a baseline's data."""

    name: Name = Field(description="name of the student in this run: letters, digits, '.', '_', '-'")
    architecture: str = Field(min_length=1, description=_ARCHITECTURE)
    vocab_size: int | None = Field(None, ge=2, description=_VOCAB_SIZE)
    method: Literal["miniplm", "pretrain"] = Field(
        "miniplm", description="miniplm: the selection; pretrain: as many tokens drawn at random from the candidates"
    )
    training: TrainingConfig


class EvaluationConfig(Section):
    """What the students are measured on."""

    heldout: bool = Field(True, description="loss on the held-out split, overall and by domain")
    tasks: tuple[str, ...] = Field((), max_length=0, description="zero-shot tasks; none can be named in this version")


class ExecutionConfig(Section):
    """Where the shards are scored and the models trained, and how a fleet is watched."""

    fan_out: Literal["local", "work-pool"] = Field(
        "local",
        description="local: in this process; work-pool: by the GPU workers of a Prefect work pool, with a Prefect server (docs/fleet.md)",
    )
    shards_per_batch: int | Literal["auto"] = Field(
        "auto",
        description="work-pool: candidate shards a flow run, which loads the model once; auto: so many that starting takes under 1 % "
        "of the time, by what start and shards were measured to take, and that all workers have work",
    )
    stale_seconds: int = Field(
        300,
        ge=60,
        description="work-pool: seconds without a sign of life after which a flow run is taken for dead and its shards are given to others; "
        "deployments/automations/stale-run.yaml does the same after 300 s for every flow run",
    )
    min_tokens_per_second: float | None = Field(
        None, gt=0, description="work-pool: a lower rate of a model over all workers raises the event miniplm.throughput-low"
    )

    @model_validator(mode="after")
    def _check_batch(self) -> ExecutionConfig:
        if self.shards_per_batch != "auto" and self.shards_per_batch < 1:
            raise ValueError(f"shards_per_batch is {self.shards_per_batch}; it must be at least 1, or auto")
        return self


class RunConfig(Section):
    """A whole run: corpus, scorers, selection, students."""

    name: Name = Field(description="name of the run; its record and report are kept under it")
    storage: Url = Field("./data", description="fsspec URL of the storage root: a folder, s3://, gs:// or memory://")
    corpus: CorpusConfig
    teacher: ModelConfig
    reference: ReferenceConfig
    scoring: ScoringConfig = ScoringConfig()
    selection: SelectionConfig = SelectionConfig()
    students: tuple[StudentConfig, ...] = Field((), description="the models to train; may be empty to stop after selection")
    evaluation: EvaluationConfig = EvaluationConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @property
    def is_on_work_pool(self) -> bool:
        """Whether workers elsewhere score and train, so that this process only plans."""
        return self.execution.fan_out == "work-pool"

    @property
    def planning_device(self) -> str:
        """The device that names in this process are made for. Workers' devices are not here, and need not be: their dtypes are pinned."""
        return "cpu" if self.is_on_work_pool else self.scoring.device

    @model_validator(mode="after")
    def _check_run(self) -> RunConfig:
        names = [student.name for student in self.students]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"students: the name {repeated[0]!r} is given twice; each student needs its own")
        if self.reference.architecture is not None and self.corpus.splits.reference == 0:
            raise ValueError(
                "corpus.splits.reference is 0, but the reference model is to be trained on that split; give it a share, or give reference.model"
            )
        if self.students and self.evaluation.heldout and self.corpus.splits.heldout == 0:
            raise ValueError(
                "corpus.splits.heldout is 0, but evaluation.heldout is on; give the split a share, or turn the evaluation off"
            )
        return self


def config_as_dict(config: BaseModel) -> dict[str, Any]:
    """A configuration as JSON-like content, as it is stored in a run's record and made into ids."""
    return config.model_dump(mode="json")
