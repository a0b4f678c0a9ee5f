"""How well a proxy predicts, by the labelled sequences and what was predicted of each without it: the numbers that its gate judges by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.corpus.reader import load_corpus
from miniplm.errors import ConfigError, CorpusError, DamagedFileError, SourceError
from miniplm.proxy.labels import find_labelled, list_ids
from miniplm.records.proxies import ProxyManifest
from miniplm.selection.agreement import compare_scores
from miniplm.selection.sample import Sample, read_sample
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


def measure_proxy(storage: Storage, manifest: ProxyManifest, rule: SelectionConfig) -> ProxyFidelity:
    """What the labels that were fitted say of a selection by a rule, which is applied to them as `measure_fidelity` applies it to a calibration.

    Raises as `read_measurement`, `read_sample` and `compare_scores`.
    """
    measured = read_measurement(storage, manifest)
    sample = _read_sample(storage, manifest, rule, measured)
    teacher, reference, predicted = (measured[f"{name}_nll"].to_numpy() for name in ("teacher", "reference", "predicted"))
    agreement = compare_scores(sample, rule, (teacher, reference), (predicted, reference))
    # Of n, k and k are drawn by chance: k / n of those k are in both, by the hypergeometric distribution. What is used in whole passes is in both.
    pools, num_passes = agreement.exact.pools, agreement.exact.num_passes
    sizes = [(pool.num_candidates, pool.num_kept) for pool in pools if pool.num_candidates]
    mean = sum(num_passes * n + k * k / n for n, k in sizes)
    variance = sum(k * (k / n) * (1 - k / n) * (n - k) / (n - 1) for n, k in sizes if n > 1)
    num_selected, overlap = agreement.num_selected, agreement.overlap
    return ProxyFidelity(
        num_sequences=measured.num_rows,
        num_selected=num_selected,
        spearman=agreement.spearman,
        overlap=overlap,
        overlap_error=math.sqrt(overlap * (1 - overlap) / max(num_selected, 1)),
        chance=mean / max(num_selected, 1),
        chance_error=math.sqrt(variance) / max(num_selected, 1),
    )


def tell_proxy(storage: Storage, manifest: ProxyManifest, rule: SelectionConfig) -> tuple[ProxyFidelity | None, str]:
    """As `measure_proxy`, of a selection that is made: None, and why, where what its rule asks of the labels is gone or damaged by now.

    Raises as `read_measurement`.
    """
    try:
        return measure_proxy(storage, manifest, rule), ""
    except (ConfigError, CorpusError, SourceError) as error:
        return None, str(error)


def _read_sample(storage: Storage, manifest: ProxyManifest, rule: SelectionConfig, measured: pa.Table) -> Sample:
    sequence_ids = measured["sequence_id"].to_numpy()
    sample = Sample(sequence_ids, measured["domain"].to_pylist(), measured["num_scored_tokens"].to_numpy().astype(np.int64))
    if not (rule.has_expressions or rule.has_token_budget):
        return sample
    corpus = load_corpus(storage, manifest.corpus_id)
    # Labels are numbered in the order of the sequences that they are. They lie close together, and those in the corpus in every shard.
    shards = corpus.split_shards("candidate")
    labelled = np.concatenate([(own := list_ids(shard))[find_labelled(own, manifest.share, manifest.seed)] for shard in shards])
    label_ids = np.searchsorted(labelled, sequence_ids).astype(np.int64)
    return read_sample(storage, corpus, rule, sample, load_corpus(storage, manifest.labels_id), label_ids)
