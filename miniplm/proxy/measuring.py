"""How well a proxy predicts, by the labelled sequences and what was predicted of each without it: the numbers that its gate judges by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.errors import DamagedFileError
from miniplm.records.proxies import ProxyManifest
from miniplm.selection.agreement import add_noise, compare_selections, correlate_ranks, group_rows
from miniplm.selection.budgets import count_selected
from miniplm.storage.root import Storage


@dataclass(frozen=True)
class ProxyFidelity:
    """A proxy's selection of the labelled sequences beside that of full scores, each predicted by a fit that had not seen it.

    `overlap` is the share of the `num_selected` that full scores select which the proxy selects too, `overlap_error` its standard error;
    `chance` what a random selection of as many would have, and `chance_error` how far one strays from that.
    """

    num_sequences: int
    num_selected: int
    spearman: float
    overlap: float
    overlap_error: float
    chance: float
    chance_error: float

    @property
    def beats_chance(self) -> bool:
        """By two standard errors; where all is selected there is nothing to tell."""
        return self.chance >= 1 or self.overlap > self.chance + 2 * self.chance_error

    def passes(self, min_overlap: float) -> bool:
        """Whether it may select: where nothing is selected of so few sequences, nothing is known, and it may not."""
        return self.num_selected > 0 and self.overlap >= min_overlap and self.beats_chance

    def describe(self) -> str:
        """For people."""
        return (
            f"of the {self.num_selected:,} sequences that full scores select from {self.num_sequences:,} labelled ones it selects {self.overlap:.1%} "
            f"(standard error {self.overlap_error:.1%}; chance gives {self.chance:.1%}), Spearman {self.spearman:.3f}"
        )


def read_measurement(storage: Storage, manifest: ProxyManifest) -> pa.Table:
    """The labelled sequences that were fitted (`MEASUREMENT_SCHEMA`). Raises `DamagedFileError` where they are not what the manifest says."""
    path = layout.proxy_measurement(manifest.proxy_id)
    content, is_held = storage.read_checked(path, manifest.measurement_digest)
    if not is_held:
        raise DamagedFileError(f"{storage.url(path)} is not what its manifest says; delete it and run again")
    return pq.read_table(pa.BufferReader(content))


def measure_proxy(measured: pa.Table, rule: SelectionConfig, num_candidate_tokens: int) -> ProxyFidelity:
    """What `read_measurement` says of a selection by this rule from candidates of so many tokens, as far as `measure_fidelity` applies it."""
    counts = measured["num_scored_tokens"].to_numpy().astype(np.float64)
    weight = counts if rule.score == "sum" else np.ones_like(counts)
    reference = measured["reference_nll"].to_numpy()
    exact = (reference - measured["teacher_nll"].to_numpy()) * weight
    predicted = (reference - measured["predicted_nll"].to_numpy()) * weight
    predicted, exact = (add_noise(rule, measured["sequence_id"].to_pylist(), scores) for scores in (predicted, exact))
    groups = group_rows(measured["domain"].to_pylist() if rule.within == "domain" else None, len(counts))
    share = rule.expect_share(num_candidate_tokens)
    num_selected, overlap = compare_selections(predicted, exact, groups, rule, share)
    if rule.threshold is not None:
        share = num_selected / max(len(counts), 1)
    # Of n, k and k are drawn by chance: k / n of those k are in both, by the hypergeometric distribution.
    sizes = [(len(rows), count_selected(len(rows), share)) for rows in groups]
    mean = sum(k * k / n for n, k in sizes)
    variance = sum(k * (k / n) * (1 - k / n) * (n - k) / (n - 1) for n, k in sizes if n > 1)
    return ProxyFidelity(
        num_sequences=len(counts),
        num_selected=num_selected,
        spearman=correlate_ranks(predicted, exact),
        overlap=overlap,
        overlap_error=math.sqrt(overlap * (1 - overlap) / max(num_selected, 1)),
        chance=mean / max(num_selected, 1),
        chance_error=math.sqrt(variance) / max(num_selected, 1),
    )
