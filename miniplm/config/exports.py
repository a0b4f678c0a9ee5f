"""The part of the configuration about exports: files for other people's trainers, made of the selection."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from miniplm.config.fields import Section, Url

ExportFormat = Literal["jsonl", "parquet", "hf", "nanochat", "megatron", "mds", "litdata", "ds", "npy"]
FORMATS: tuple[str, ...] = get_args(ExportFormat)
TEXT_FORMATS = ("jsonl", "parquet", "hf", "nanochat")
# What stands for the selection's id in a target.
SELECTION = "{selection}"
# A file of 64 MB, which those that stream a dataset ask for; other formats have larger ones.
_STREAMED_SHARD_TOKENS = 1 << 24
_SHARD_TOKENS = 100_000_000
# Their rows are sequences, packed as they were scored; those of the others are documents.
SEQUENCE_FORMATS = ("mds",)
# Their own readers take a loss mask: a column, or a file beside the ids.
MASK_FORMATS = ("mds", "ds", "npy")


class ExportConfig(Section):
    """One export of the selection. The same selection and settings give the same bytes, wherever they go."""

    format: ExportFormat = Field(
        description="text: jsonl, parquet, hf (a folder for datasets.load_dataset), nanochat; token ids: megatron (.bin and .idx), "
        "mds (mosaicml-streaming), litdata (litgpt), ds (datatrove, nanotron), npy (OLMo); docs/export.md says what each holds"
    )
    to: Url = Field(
        description="fsspec URL of an empty or new folder: a path, s3://bucket/prefix, gs://...; `{selection}` in it stands for the id of "
        "the selection, so that another selection goes to another folder"
    )
    shard_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of the corpus a file, at least; a file ends with the document that reaches them. null: 16,777,216 for mds and litdata, "
        "else 100,000,000",
    )
    compression: Literal["none", "zstd"] = Field("none", description="of jsonl: zstd writes .jsonl.zst")
    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="hub id or folder of another tokenizer for token ids; null: the corpus's, whose ids are kept",
    )
    eos_token: str | None = Field(
        None, min_length=1, description="with tokenizer: the token after each document; null: its own EOS token"
    )
    bos_token: str | None = Field(
        None,
        min_length=1,
        description="a token of the vocabulary that is put before each document; null: none, as the formats' users do",
    )

    loss_mask: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="of mds, ds and npy: which tokens are targets, one byte each, as a column or in files beside the ids: 0 where nothing before could "
        "predict a token, the first of a row and of each document",
    )

    def resolve(self, selection_id: str) -> ExportConfig:
        """The same with the folder that a selection goes to."""
        return self.model_copy(update={"to": self.to.replace(SELECTION, selection_id)})

    @property
    def holds_text(self) -> bool:
        """Whether the files hold text, not token ids."""
        return self.format in TEXT_FORMATS

    @property
    def num_shard_tokens(self) -> int:
        """`shard_tokens`, or the format's own."""
        return self.shard_tokens or (_STREAMED_SHARD_TOKENS if self.format in ("mds", "litdata") else _SHARD_TOKENS)

    @property
    def has_scores(self) -> bool:
        """Whether rows are documents with columns for their scores."""
        return self.format in ("jsonl", "parquet", "hf")

    @model_validator(mode="after")
    def _check_fields(self) -> ExportConfig:
        if self.compression != "none" and self.format != "jsonl":
            raise ValueError(f"compression is for jsonl; {self.format} has its own or none")
        if self.holds_text:
            for name in ("tokenizer", "eos_token", "bos_token"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for formats of token ids; {self.format} holds text")
        if self.eos_token is not None and self.tokenizer is None:
            raise ValueError("eos_token goes with tokenizer; the ids of the corpus have the corpus's own")
        if self.loss_mask and self.format not in MASK_FORMATS:
            raise ValueError(
                f"loss_mask is for {', '.join(MASK_FORMATS)}; {self.format} has no place for it. Megatron makes its own of the EOS that ends each document"
            )
        if self.bos_token is not None and self.format in SEQUENCE_FORMATS:
            raise ValueError(f"bos_token is put before documents, and the rows of {self.format} are packed sequences; leave it out")
        return self
