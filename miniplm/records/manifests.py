"""What one stage hands to the next: small records of what lies at the storage root, never the data itself."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Split = Literal["candidate", "reference", "heldout"]


class Record(BaseModel):
    """An immutable record, stored as JSON in manifests and passed between tasks."""

    # A field that is not known is refused: what a later version wrote must not be read in part and written back without it.
    model_config = ConfigDict(frozen=True, extra="forbid")

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


class ShardEntry(Record):
    """One file of sequences of a corpus. Its `sequence_id`s are `first_sequence_id`, +1, +2, ... in row order.

    `corpus_id` is the corpus in which the shard was made: its file and its scores lie there.
    """

    corpus_id: str
    split: Split
    shard_index: int
    digest: str
    num_bytes: int
    num_sequences: int
    num_tokens: int
    first_sequence_id: int

    @property
    def title(self) -> str:
        """How people are told of it."""
        return f"{self.split} shard {self.shard_index} of corpus {self.corpus_id}"


class SourceEntry(Record):
    """One source file. Its records are documents `first_document_id` ... + `num_records` - 1, rejected ones included.

    `corpus_id` is the corpus for which it was read, `reading` a digest of how: format, fields and compression. The
    same bytes read in the same way are the same file, whatever it is called. Both are empty in older manifests.
    """

    path: str
    digest: str
    num_bytes: int
    num_records: int
    first_document_id: int
    corpus_id: str = ""
    reading: str = ""


LeftOutReason = Literal[
    "hidden",
    "a folder",
    "no regular file",
    "found already",
    "a link to a folder above it",
    "a link that leads nowhere",
    "written by MiniPLM",
    "its content is in the corpus already",
]


class LeftOut(Record):
    """What the pattern of a source came across and left out, for one reason; `names` are the first ten of `num_files`.

    `hidden` names begin with a dot, or lie in a folder that does; files `found already` are reached through more than one folder;
    those `written by MiniPLM` lie in its folders at the storage root, such as the quarantine of the corpus before. A file whose
    `content is in the corpus already` is a copy, or has another name than when a growing corpus took it in.
    """

    source: str
    reason: LeftOutReason
    num_files: int
    names: tuple[str, ...]


class DomainCounts(Record):
    """What one domain has in one split. `num_bytes` counts the UTF-8 bytes of the documents' texts."""

    num_documents: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    num_sequences: int = 0


class TokenizerEntry(Record):
    """The tokenizer of a corpus. `digest` is of its vocabulary: every token with its id.

    `rules` is a digest of all that decides the token ids of a text (merges, normalisation, splitting); empty in records of derived sets and
    of earlier versions.
    """

    name: str
    digest: str
    vocab_size: int
    eos_token: str
    eos_token_id: int
    rules: str = ""


class CorpusManifest(Record):
    """A prepared corpus; it is complete when this is at the storage root.

    num_records == sum of documents over splits and domains + sum of `rejected`.
    num_tokens of a split's shards == sum of its domains' num_tokens.

    `rejected_by_file` has the files with rejected records (older manifests: none), `left_out` what the sources' patterns came
    across and did not take when the corpus was prepared; neither is in the id.

    An extension names its `parent`; its sources, counts and shards are those of the parent and then its own, so all of
    the above holds for the whole. The parent's shards stay where they are, and so do their scores and quarantine.
    """

    corpus_id: str
    parent: str | None = None
    tokenizer: TokenizerEntry
    sequence_length: int
    sources: tuple[SourceEntry, ...]
    num_records: int
    rejected: dict[str, int]
    rejected_by_file: dict[str, int] = {}
    left_out: tuple[LeftOut, ...] = ()
    domains: dict[Split, dict[str, DomainCounts]]
    shards: tuple[ShardEntry, ...]
    versions: dict[str, str]

    @property
    def lineage(self) -> tuple[str, ...]:
        """The corpora that this one extends, the first of all first, and then itself."""
        if self.parent is None:
            return (self.corpus_id,)
        return tuple(dict.fromkeys(source.corpus_id for source in self.sources))

    def split_shards(self, split: Split) -> tuple[ShardEntry, ...]:
        """The shards of one split in the order of their index."""
        return tuple(sorted((shard for shard in self.shards if shard.split == split), key=lambda shard: shard.shard_index))

    def root_shards(self, split: Split) -> tuple[ShardEntry, ...]:
        """The shards of one split that the first corpus of the lineage has: all of them, unless this is an extension."""
        if self.parent is None:
            return self.split_shards(split)
        return tuple(shard for shard in self.split_shards(split) if shard.corpus_id == self.lineage[0])

    def split_counts(self, split: Split) -> DomainCounts:
        """Documents, bytes, tokens and sequences of a split over all domains."""
        counts = self.domains.get(split, {}).values()
        return DomainCounts(
            num_documents=sum(count.num_documents for count in counts),
            num_bytes=sum(count.num_bytes for count in counts),
            num_tokens=sum(count.num_tokens for count in counts),
            num_sequences=sum(count.num_sequences for count in counts),
        )


class DocumentScoresEntry(Record):
    """The file with the scores of a shard's documents, beside those of its sequences; a row is a document's part in one sequence.

    `num_unattributed` sequences hold an EOS that ends no document, as a text has it: which part is which document's is not known,
    and their one row has no document.
    """

    digest: str
    num_bytes: int
    num_rows: int
    num_unattributed: int = 0


class ScoreShardManifest(Record):
    """A shard's scores under one model; the shard is scored when this and the file's digest agree.

    `shard_digest` is of the sequences that were scored, so scores of another file of the same name do not count.
    `seconds` are those in which the shard had the device; `matmul_peak_share` is FLOP/s over those of a large product
    in the same dtype (bfloat16 for fp8) measured on the same device, `device_wait_share` the part of `seconds` in
    which the device had nothing to do; `engine` says how the model was run; `worker` which process did it, and
    `start_seconds` how long that process took from its start until the model was ready, once for all its shards.
    `documents` is None in manifests of earlier versions.
    """

    corpus_id: str
    model_id: str
    shard_index: int
    shard_digest: str
    digest: str
    num_bytes: int
    num_sequences: int
    num_tokens: int
    num_scored_tokens: int
    nll_sum: float
    seconds: float
    device: str
    dtype: str
    tokens_per_second: float | None = None
    matmul_peak_share: float | None = None
    device_wait_share: float | None = None
    engine: dict[str, str | int | bool] = {}
    documents: DocumentScoresEntry | None = None
    worker: str = ""
    start_seconds: float | None = None
    versions: dict[str, str]


class ScoreFailure(Record):
    """Why a shard could not be scored the last time it was tried.

    `lasting` failures are the shard's or the configuration's own (damaged data, a non-finite score): another try
    gives the same. `flow_run_id` is empty where no Prefect server knows of it.
    """

    corpus_id: str
    model_id: str
    shard_index: int
    error: str
    reason: str
    lasting: bool
    worker: str
    flow_run_id: str = ""
    failed_at: str


class ModelEntry(Record):
    """A model as it scores: `model_id` is made of weights, configuration, dtype and attention.

    It is read from `models/MODEL_ID` at the storage root where `stored`, else from the hub id or folder `source`.
    `proxy` says what kind of one it is where it is none of the two models but predicts what the teacher would give.
    """

    model_id: str
    source: str
    revision: str | None = None
    stored: bool = False
    trust_remote_code: bool = False
    dtype: str
    attention: Literal["sequence", "document"] = "sequence"
    weights_digest: str
    num_parameters: int
    proxy: Literal["linear", "head"] | None = Field(None, exclude_if=lambda proxy: proxy is None)


def is_proxy(model_id: str) -> bool:
    """Whether scores under this id were predicted by a proxy: no model is named so, as a model's id tells its size and dtype."""
    return re.fullmatch(r"proxy-(linear|head)-[0-9a-f]{12}", model_id) is not None


class CheckpointMetrics(Record):
    """One optimizer step: loss in nats a scored token over the global batch, gradient norm before clipping."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    num_tokens: int
    seconds: float


class TrainingManifest(Record):
    """A finished training. `weights_digest` is of the final weights; `checkpoint` is its folder below the root.

    `num_tokens` and `num_sequences` count what the steps went over, epochs counted; `num_skipped_steps` of them
    changed nothing, as their gradient was not finite. `files` are the digests of the exported files by name, `data_ids`
    the artifacts with which it was trained by what they are; older manifests have none.
    `data_wait_share` is the part of its time in which the training waited for sequences to be read, and
    `matmul_peak_share` the FLOP/s of the student's own products over those of a large product in the same dtype on
    as many devices; both since it was last started, None where that was after the last step.
    """

    training_id: str
    recipe: dict[str, Any]
    checkpoint: str
    weights_digest: str
    num_parameters: int
    num_steps: int
    num_tokens: int
    num_sequences: int
    num_skipped_steps: int = 0
    final_loss: float
    seconds: float
    device: str
    num_processes: int = 1
    data_wait_share: float | None = None
    matmul_peak_share: float | None = None
    files: dict[str, str] = {}
    data_ids: dict[str, str] = {}
    versions: dict[str, str]


class DomainLoss(Record):
    """Held-out loss: nats a scored token, and bits a UTF-8 byte of text (independent of the tokenizer).

    `nats_standard_error` is that of `nats_per_token` over documents; None where there is one document only, and in
    older evaluations.
    """

    nats_per_token: float
    bits_per_byte: float
    num_scored_tokens: int
    num_sequences: int
    nats_standard_error: float | None = None

    @property
    def bits_standard_error(self) -> float | None:
        """The standard error of `bits_per_byte`, which is `nats_per_token` times a constant of the text."""
        if self.nats_standard_error is None or self.nats_per_token == 0:
            return None
        return self.nats_standard_error * self.bits_per_byte / self.nats_per_token


class TaskResult(Record):
    """The accuracy of a model at a zero-shot task, in [0, 1], by the harness' metric `metric` (acc_norm or acc).

    `standard_error` is the harness'; None where it has none (one document). `key` is a digest of what decides the result
    but the harness: the weights, the task's file and data where they are local, the number of documents asked for.
    """

    accuracy: float
    standard_error: float | None
    metric: str
    num_documents: int
    num_shots: int = 0
    key: str = ""
    harness_version: str = ""


class Evaluation(Record):
    """A model measured on the held-out split of a corpus (`candidate`: on all of one, of text from elsewhere), and by tasks where the run names some.

    `losses_digest` is of the file with the loss of each sequence, kept beside the evaluation of a finished training.
    """

    corpus_id: str
    weights_digest: str
    overall: DomainLoss
    domains: dict[str, DomainLoss]
    seconds: float
    losses_digest: str | None = None
    split: Split = "heldout"
    tasks: dict[str, TaskResult] = {}
