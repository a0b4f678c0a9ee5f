"""The part of the configuration about scoring: how both models run over the candidates, and whether a proxy stands in for the teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from miniplm.config.fields import Section
from miniplm.config.proxy import ProxyConfig


class ScoringConfig(Section):
    """How the two models run over the candidate shards. Of it, only `attention` and `proxy` change the scores beyond rounding."""

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
        "auto",
        description="torch.compile of the model; auto: on a GPU, where batches have one shape (segments in one row). A model that does not compile runs as it is",
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
        description="sequences on which fp8 and fp8-head are compared with float32 before they may score; `score --calibrate N` takes N",
    )
    # Left out while there is none, so that runs without a proxy have the record and the plan that they had.
    proxy: ProxyConfig | None = Field(
        None,
        exclude_if=lambda proxy: proxy is None,
        description="the teacher scores a share of the candidates alone, and a small scorer that learns from it predicts the rest (docs/scoring.md)",
    )

    @model_validator(mode="after")
    def _check_budget(self) -> ScoringConfig:
        if self.tokens_per_batch != "auto" and self.tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch is {self.tokens_per_batch}; it must be at least 1, or auto")
        return self
