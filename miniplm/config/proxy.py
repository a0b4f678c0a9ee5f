"""The part of the configuration about a proxy: a small scorer that learns from a share of the scores, and predicts the rest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from miniplm.config.fields import LARGEST_SEED, Section

ProxyKind = Literal["linear", "head"]


class ProxyConfig(Section):
    """A proxy in the teacher's place: the teacher scores a share of the candidates, the proxy predicts the difference score of the rest."""

    share: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="share of the candidate sequences that the teacher scores, in (0, 1): drawn by their ids, over all shards alike",
    )
    scorer: ProxyKind = Field(
        "linear",
        description="linear: on hashed n-grams of token ids, no model runs over the rest but the reference; head: on the reference's mean hidden "
        "states, for one pass more of its layers",
    )
    min_overlap: float = Field(
        0.75,
        ge=0,
        le=1,
        description="gate of the proxy: least share of the labelled sequences selected by full scores that its own predictions, made without them, "
        "select too, in [0, 1]; a proxy that selects no better than chance is refused whatever this says",
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of the draw of the labelled sequences")
