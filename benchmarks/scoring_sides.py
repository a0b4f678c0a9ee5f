"""MiniPLM's own side of the comparison with the published one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.scoring_inputs import Inputs
from miniplm import layout
from miniplm.config.run import ScoringConfig
from miniplm.models.identity import identify_model
from miniplm.records.manifests import ScoreShardManifest, ShardEntry
from miniplm.run.scoring_models import open_scorer
from miniplm.scoring.forward import ForwardPass
from miniplm.scoring.model_inputs import ModelInputs
from miniplm.scoring.shards import score_shard


@dataclass(frozen=True)
class SideRun:
    """Seconds from shards on disk to scores on disk, and those of them in which the device computed a batch; None: not known."""

    seconds: float
    busy_seconds: float | None
    details: dict[str, Any] = field(default_factory=dict)


class BusyClock:
    """How long the device had a batch, the same way for every side; by events on a GPU, so that it is not slowed down."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def begin(self) -> None:
        self._mark()

    def end(self) -> None:
        self._mark()

    def _mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def busy_seconds(self) -> float:
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return float(sum(begin.elapsed_time(end) for begin, end in pairs)) / 1000
        return float(sum(end - begin for begin, end in pairs))


class _TimedForward:
    """A forward pass with a clock around it."""

    def __init__(self, forward: ForwardPass, clock: BusyClock) -> None:
        self._forward, self._clock = forward, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._forward, name)

    def __call__(self, inputs: ModelInputs) -> Tensor:
        self._clock.begin()
        nll_M = self._forward(inputs)
        self._clock.end()
        return nll_M


class OurSide:
    """MiniPLM's engine as a run uses it: one scorer, two threads over the shards."""

    name = "ours"

    def __init__(self, inputs: Inputs, device: torch.device, dtype: str, tokens_per_batch: int | str) -> None:
        self.inputs, self.device, self.dtype = inputs, device, dtype
        self.entry = identify_model(inputs.folder, str(inputs.folder), dtype)
        self.model_id = self.entry.model_id
        started = time.perf_counter()
        scoring = ScoringConfig.model_validate({"device": str(device), "tokens_per_batch": tokens_per_batch})
        self.scorer = open_scorer(inputs.storage, self.entry, scoring, inputs.corpus.sequence_length)
        self.scorer.score(inputs.read_sequences()[:2], inputs.corpus.tokenizer.eos_token_id)
        self.start_up_seconds = time.perf_counter() - started
        self.forward = self.scorer.forward
        self.head = self.forward.head.name

    @property
    def engine(self) -> dict[str, Any]:
        return self.scorer.describe() | {"notes": [*self.forward.notes, *self.forward.head.notes]}

    def run(self) -> SideRun:
        """All shards from disk to score files and manifests."""
        storage, corpus = self.inputs.storage, self.inputs.corpus
        for shard in self.inputs.shards:
            storage.delete(layout.score_shard_manifest(shard.corpus_id, self.model_id, shard.shard_index))
        clock = BusyClock(self.device)
        self.scorer.forward = cast(ForwardPass, _TimedForward(self.forward, clock))

        def score(shard: ShardEntry) -> ScoreShardManifest:
            return score_shard(storage, corpus, shard, self.entry, self.scorer)

        started = time.perf_counter()
        with ThreadPoolExecutor(max_workers=2) as pool:
            manifests = list(pool.map(score, self.inputs.shards))
        seconds = time.perf_counter() - started
        self.scorer.forward = self.forward
        # What the engine says of itself counts the time in which a shard has the device, not what is between shards.
        held = sum(manifest.seconds for manifest in manifests)
        waited = sum(manifest.seconds * (manifest.device_wait_share or 0.0) for manifest in manifests)
        told = {"engine_tokens_per_second": self.inputs.num_tokens / held, "engine_wait_share": waited / held}
        return SideRun(seconds, clock.busy_seconds(), told)
