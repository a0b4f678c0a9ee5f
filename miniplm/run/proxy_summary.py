"""What people are told of a run's proxy: how well it predicts, and what it saves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from miniplm.config.proxy import ProxyConfig
from miniplm.config.run import SelectionConfig
from miniplm.proxy.cost import ScoringFlops, count_proxy_flops
from miniplm.proxy.measuring import ProxyFidelity, tell_proxy
from miniplm.proxy.prediction import load_proxy
from miniplm.records.manifests import CorpusManifest, Record
from miniplm.records.proxies import ProxyManifest
from miniplm.records.run import RunRecord
from miniplm.storage.root import Storage


class ProxySummary(Record):
    """A run's proxy with what was measured of it for the run's rule of selection, and the FLOPs of all scoring with it and without.

    `hours_saved` is what the teacher would have taken for the rest at the rate at which it scored its share, less what the proxy took; None where
    the run's stages are not on record.
    """

    manifest: ProxyManifest
    min_overlap: float
    fidelity: dict[str, Any]
    problem: str = ""
    flops: ScoringFlops
    hours_saved: float | None = None

    @property
    def measured(self) -> ProxyFidelity | None:
        """The numbers of the gate; None where a `problem` says why they cannot be told any more."""
        return ProxyFidelity(**self.fidelity) if self.fidelity else None


def summarise_proxy(storage: Storage, record: RunRecord, corpus: CorpusManifest) -> ProxySummary | None:
    """The summary of a run's proxy; None where the run has none, or not yet. Raises as `read_measurement`."""
    if record.proxy is None:
        return None
    config = ProxyConfig.model_validate(record.config["scoring"]["proxy"])
    selection = SelectionConfig.model_validate(record.config.get("selection", {}))
    manifest = load_proxy(storage, record.proxy.model_id)
    num_tokens = corpus.split_counts("candidate").num_tokens
    fidelity, problem = tell_proxy(storage, manifest, selection)
    return ProxySummary(
        manifest=manifest,
        min_overlap=config.min_overlap,
        fidelity={} if fidelity is None else asdict(fidelity),
        problem=problem,
        flops=count_proxy_flops(manifest, num_tokens),
        hours_saved=_count_hours(record, corpus),
    )


def _count_hours(record: RunRecord, corpus: CorpusManifest) -> float | None:
    stages = {stage.name: stage for stage in record.stages}
    teacher, proxy = stages.get("score teacher"), stages.get("score proxy")
    if teacher is None or proxy is None or not teacher.num_units or not teacher.seconds:
        return None
    rest = corpus.split_counts("candidate").num_tokens - teacher.num_units
    return (rest * teacher.seconds / teacher.num_units - proxy.seconds) / 3600
