"""The configuration of a run: one YAML file, checked whole before anything starts.

Every field carries its meaning and unit; `miniplm config --schema` prints them. Unknown keys are refused.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from miniplm.config.exports import ExportConfig
from miniplm.config.fields import LARGEST_SEED, MOST_SHARD_TOKENS, Location, Name, Section, Url, write_label
from miniplm.config.methods import Method as Method
from miniplm.config.proxy import ProxyConfig
from miniplm.config.scoring import ScoringConfig
from miniplm.config.selection import SelectionConfig
from miniplm.config.training import (
    ARCHITECTURE,
    LOCATION,
    VOCAB_SIZE,
    DistillationConfig,
    Dtype,
    GenerationConfig,
    StudentConfig,
    TrainingConfig,
)

__all__ = [
    "CorpusConfig",
    "DistillationConfig",
    "Dtype",
    "EvaluationConfig",
    "ExecutionConfig",
    "ExportConfig",
    "GenerationConfig",
    "Method",
    "Name",
    "ProxyConfig",
    "ReferenceConfig",
    "RunConfig",
    "ScoringConfig",
    "ScoringDtype",
    "Section",
    "SelectionConfig",
    "SourceConfig",
    "SplitsConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainingConfig",
    "TuningConfig",
    "Url",
    "config_as_dict",
]

ScoringDtype = Literal["auto", "float32", "bfloat16", "float16", "fp8", "fp8-head"]


class SourceConfig(Section):
    """Where documents come from. Exactly one of `domain` and `domain_name` says to which domain they belong."""

    path: Url = Field(
        description="fsspec URL or path of files, with wildcards (`*`, `**`, `?`, `[..]`), which stand for no dot at the start of a "
        "name; for `format: text` also a folder"
    )
    format: Literal["jsonl", "parquet", "text"] = Field(
        "jsonl",
        description="jsonl: one JSON object a line; parquet: one document a row; text: one document a file. Files of lines or text may be "
        "compressed, which their first bytes say: gzip, zstd, bzip2, xz, lzma, zip of one file",
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


EncoderName = Literal["tokenizers", "gigatoken"]


class CorpusConfig(Section):
    """The corpus and how it is cut into sequences."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="where the documents come from, in this order")
    tokenizer: Location = Field(description=f"{LOCATION} of the tokenizer; teacher and reference must share it")
    eos_token: str | None = Field(None, description="the token that separates documents; null: the tokenizer's own EOS token")
    sequence_length: int = Field(1024, ge=2, description="targets a sequence; a sequence holds at most one token more")
    sequences_per_shard: int = Field(65536, ge=1, description="sequences a shard file; a shard is the unit of scoring and of retry")
    splits: SplitsConfig = SplitsConfig()
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of the hash that puts a document into a split")
    extend: bool = Field(
        False,
        description="true: source files that are new since the last preparation with the same settings are added to that corpus as an "
        "extension, nothing old is prepared or scored again; false: the corpus is made of exactly the files found",
    )
    truth: str | None = Field(
        None,
        min_length=1,
        description="dotted path of a field that says what a document is, e.g. `meta.kind`, where that is known: reports then say what was kept of each "
        "kind, with precision and recall. Nothing that scores or selects reads it, and it is in no id; it may be named later",
    )
    clean: tuple[str, ...] = Field(
        ("clean",), min_length=1, description="with `truth`: the labels of text that is worth keeping; what bears another is dirt"
    )
    encoder: EncoderName = Field(
        "tokenizers",
        description="the library that makes token ids of texts; it is in no id. gigatoken: several times as fast, for the byte-level tokenizers "
        'that it takes (pip install "miniplm[gigatoken]"); a piece of every batch is encoded by both, and a difference stops the preparation',
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the tokenizer; only for sources you trust")

    @field_validator("clean", mode="before")
    @classmethod
    def _write_labels(cls, content: Any) -> Any:
        """`[1, true]` are labels too, and are what documents have."""
        if not isinstance(content, list | tuple):
            return content
        return [write_label(label) if isinstance(label, bool | int | float) else label for label in content]

    @model_validator(mode="after")
    def _check_shard_size(self) -> CorpusConfig:
        most = MOST_SHARD_TOKENS // (self.sequence_length + 1)
        if self.sequences_per_shard > most:
            raise ValueError(
                f"sequences_per_shard is {self.sequences_per_shard}, but a shard holds at most {MOST_SHARD_TOKENS:,} tokens, and a sequence "
                f"up to {self.sequence_length + 1:,}; give at most {most}"
            )
        return self


_SCORING_DTYPE = (
    "auto: bfloat16 on a GPU, and on a CPU that multiplies in it (AMX, AVX512-BF16, ARM's bf16) from hidden width 512; else float32; fp8: linear layers in float8_e4m3 with a scale a row, the rest bfloat16, "
    "fp8-head: the head in float8_e4m3 too, both on GPUs that have it (H100, L40S, newer), once it has passed the fidelity gate (scoring.min_overlap)"
)


class TuningConfig(Section):
    """Target text, and how the reference is tuned on it to become the teacher (CoLoR-Filter, arXiv 2406.10670)."""

    sources: tuple[SourceConfig, ...] = Field(
        min_length=1,
        description="the text that the selection is to be like, in the form of corpus.sources, with domains of its own; packed once, by the corpus's tokenizer",
    )
    training: TrainingConfig = Field(description="how the reference's weights are trained further on it")


class TeacherConfig(Section):
    """The large scorer, which is given (`model`), or the reference tuned on target text (`tuned_on`), which needs no large model."""

    model: Location | None = Field(None, description=f"{LOCATION} of a transformers model with safetensors weights")
    revision: str | None = Field(None, description="branch, tag or commit on the hub, with `model`")
    dtype: ScoringDtype = Field("auto", description=f"precision of weights and activations; {_SCORING_DTYPE}")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model; only for sources you trust")
    # Left out while there is none, so that runs with a given teacher have the record that they had.
    tuned_on: TuningConfig | None = Field(
        None,
        exclude_if=lambda tuned_on: tuned_on is None,
        description="instead of `model`: the reference trained further on target text; what is kept is then what became likelier by that (docs/scoring.md)",
    )

    @model_validator(mode="after")
    def _check_kind(self) -> TeacherConfig:
        if (self.model is None) == (self.tuned_on is None):
            raise ValueError("give exactly one of `model` (a finished model) and `tuned_on` (the reference, tuned on target text)")
        if self.tuned_on is not None and (self.revision is not None or self.trust_remote_code):
            raise ValueError("`revision` and `trust_remote_code` go with `model`; a tuned teacher has those of the reference")
        return self


class ReferenceConfig(Section):
    """The small scorer: trained here on the reference split (`architecture` and `training`), or given (`model`)."""

    model: Location | None = Field(None, description=f"{LOCATION} of a finished reference model")
    revision: str | None = Field(None, description="branch, tag or commit on the hub, with `model`")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model; only for sources you trust")
    architecture: Location | None = Field(None, description=f"what to train: a {ARCHITECTURE}")
    vocab_size: int | None = Field(None, ge=2, description=VOCAB_SIZE)
    training: TrainingConfig | None = Field(None, description="how to train it, with `architecture`")
    dtype: ScoringDtype = Field("auto", description=f"precision it scores in; {_SCORING_DTYPE}")

    @model_validator(mode="after")
    def _check_kind(self) -> ReferenceConfig:
        if (self.model is None) == (self.architecture is None):
            raise ValueError("give exactly one of `model` (a finished model) and `architecture` (train one on the reference split)")
        if (self.architecture is None) != (self.training is None):
            raise ValueError("`architecture` and `training` go together: what to train, and how")
        return self


class EvaluationConfig(Section):
    """What the students are measured on."""

    heldout: bool = Field(
        True,
        description="loss on the held-out split, overall and by domain; where `sources` are given, of the final model only, beside theirs",
    )
    sources: tuple[SourceConfig, ...] = Field(
        (),
        description="held-out text from elsewhere, in the form of corpus.sources, with domains of its own: losses, curves, fits and comparisons are then "
        "of it. It is packed once, by the corpus's tokenizer",
    )
    allow_overlap: bool = Field(
        False,
        description="measure also where documents of `sources` are in the corpus too; they are counted in any case, by digests of their texts",
    )
    milestones: bool = Field(
        True, description="also of the checkpoints that training.milestone_every_steps keeps; curves are fitted to them"
    )
    tasks: tuple[str, ...] = Field(
        (),
        description="zero-shot tasks of lm-evaluation-harness by name, or `paper` for the nine of the paper (needs the extra `eval`)",
    )
    task_folder: str | None = Field(
        None,
        min_length=1,
        description="folder of task files (YAML) that are looked up first: tasks with local data, for machines without a hub",
    )
    task_limit: int | None = Field(None, ge=1, description="documents a task; null: all")
    extrapolate_tokens: tuple[float, ...] = Field(
        (1e12, 1e13), description="tokens of training for which the fitted curve tells the held-out loss"
    )

    @property
    def measures_losses(self) -> bool:
        """Whether students are measured on held-out text, of the corpus or from elsewhere."""
        return self.heldout or bool(self.sources)


class ExecutionConfig(Section):
    """Where the shards are scored and the models trained, and how a fleet is watched."""

    fan_out: Literal["local", "work-pool"] = Field(
        "local",
        description="local: in this process; work-pool: by the GPU workers of a Prefect work pool, with a Prefect server (docs/fleet.md)",
    )
    # Left out while it is the default, so that runs have the record that they had.
    prepare: Literal["parent", "workers"] = Field(
        "parent",
        exclude_if=lambda value: value == "parent",
        description="work-pool: who reads and tokenises the sources. workers: each takes some files, which it has to see at the same place; the parent packs them",
    )
    shards_per_batch: int | Literal["auto"] = Field(
        "auto",
        description="work-pool: candidate shards a flow run, which loads the model once; auto: so many that starting takes under 1 % "
        "of the time, by what start and shards were measured to take, and that all workers have work. A number is also that of the parts of a "
        "preparation or an export a flow run; auto: 16 of these at most",
    )
    launcher: Literal["process", "inline"] = Field(
        "process",
        description="process: each training runs in a process group of its own, which is ended with its run; inline: in the process of the "
        "run, on one device, for debugging and very small runs",
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
    storage: Url = Field(
        "./data", description="fsspec URL of the storage root: a folder or s3://; another file system of fsspec may work"
    )
    corpus: CorpusConfig
    teacher: TeacherConfig
    reference: ReferenceConfig
    scoring: ScoringConfig = ScoringConfig()
    selection: SelectionConfig = SelectionConfig()
    students: tuple[StudentConfig, ...] = Field((), description="the models to train; may be empty to stop after selection")
    evaluation: EvaluationConfig = EvaluationConfig()
    # Left out while it is empty, so that runs without exports have the record that they had.
    exports: tuple[ExportConfig, ...] = Field(
        (),
        exclude_if=lambda exports: not exports,
        description="files made of the selection for other people's trainers, after it is made (docs/export.md)",
    )
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
        targets = [export.to.rstrip("/") for export in self.exports]
        twice = sorted({target for target in targets if targets.count(target) > 1})
        if twice:
            raise ValueError(f"exports: two go to {twice[0]}; each needs a folder of its own")
        if self.reference.architecture is not None and self.corpus.splits.reference == 0:
            raise ValueError(
                "corpus.splits.reference is 0, but the reference model is to be trained on that split; give it a share, or give reference.model"
            )
        if self.selection.contamination == "drop" and not (
            self.evaluation.tasks or self.evaluation.sources or self.corpus.splits.heldout
        ):
            raise ValueError(
                "selection.contamination is drop, but there is no text to look for: name evaluation.tasks or evaluation.sources, or give "
                "corpus.splits.heldout a share"
            )
        if self.students and self.evaluation.heldout and self.corpus.splits.heldout == 0:
            raise ValueError(
                "corpus.splits.heldout is 0, but evaluation.heldout is on; give the split a share, or turn the evaluation off"
            )
        if self.scoring.proxy is not None and self.teacher.tuned_on is not None:
            raise ValueError(
                "scoring.proxy stands in a large teacher's place, and teacher.tuned_on has one as small as the reference: leave one of them out"
            )
        if self.scoring.proxy is not None and self.selection.unit == "document":
            raise ValueError(
                "selection.unit is document, and scoring.proxy predicts scores of sequences alone: leave one of them out"
            )
        if self.evaluation.tasks and not self.evaluation.measures_losses:
            raise ValueError(
                "evaluation.tasks are measured with the held-out loss: turn evaluation.heldout on, or leave the tasks out"
            )
        return self


def config_as_dict(config: BaseModel) -> dict[str, Any]:
    """A configuration as JSON-like content, as it is stored in a run's record and made into ids."""
    return config.model_dump(mode="json")
