"""The held-out loss of each sequence under one model: kept, so that two models are compared on the same text, sequence by sequence.

The sequences of a held-out split are a random draw of documents. A mean loss of it has a standard error, and the
difference of two models' means a much smaller one, as both find the same text easy or hard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from miniplm import layout
from miniplm.storage.root import Storage, digest_stream
from miniplm.storage.tables import publish_table

_SCHEMA = pa.schema(
    [
        pa.field("sequence_id", pa.int64(), nullable=False),
        pa.field("domain", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("document_id", pa.int64(), nullable=False),
        pa.field("num_scored_tokens", pa.int32(), nullable=False),
        pa.field("nll_sum", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class SequenceLosses:
    """One entry a sequence, in the order of the split, each array (num_sequences,): `nll_sum` in nats over its scored targets.

    `document_id` is of the document that the sequence opens with: the sequences of a long document are not
    independent, and count as one.
    """

    sequence_id: NDArray[np.int64]
    domain: NDArray[np.str_]
    document_id: NDArray[np.int64]
    num_scored_tokens: NDArray[np.int64]
    nll_sum: NDArray[np.float64]

    def of_domain(self, domain: str) -> SequenceLosses:
        chosen = self.domain == domain
        return SequenceLosses(*(values[chosen] for values in self._columns()))

    def is_of_the_same_text(self, other: SequenceLosses) -> bool:
        """Whether both are of the same sequences in the same tokens, so that they can be subtracted."""
        return all(np.array_equal(mine, theirs) for mine, theirs in zip(self._columns()[:4], other._columns()[:4], strict=True))

    def standard_error(self) -> float | None:
        """The standard error of the mean NLL, in nats a token; see `ratio_standard_error`."""
        return ratio_standard_error(self.nll_sum, self.num_scored_tokens, self.document_id)

    def _columns(self) -> tuple[NDArray[Any], ...]:  # (num_sequences,) each
        return (self.sequence_id, self.domain, self.document_id, self.num_scored_tokens, self.nll_sum)


def ratio_standard_error(sums: NDArray[Any], counts: NDArray[Any], clusters: NDArray[Any]) -> float | None:
    """The standard error of r = sum(sums) / sum(counts), where whole clusters were drawn at random; None for less than two.

        e_g = sums_g - r counts_g       for cluster g of G, sums_g and counts_g the totals of its members
        se  = sqrt(G / (G - 1) * sum_g e_g^2) / sum(counts)

    The linearised error of a ratio estimator (Cochran, Sampling Techniques, 1977, 6.4 and 9A.1); `sums`, `counts` and
    `clusters` are (num_members,). For clusters of one member and equal counts it is the standard error of a mean.
    """
    names, index = np.unique(clusters, return_inverse=True)
    total = float(np.sum(counts, dtype=np.float64))
    if len(names) < 2 or total == 0:
        return None
    # Summed by cluster first: sequences of one document are alike, and taken as independent they would make the error too small.
    residuals = np.bincount(index, weights=sums - np.sum(sums) / total * counts)
    return float(np.sqrt(len(names) / (len(names) - 1) * np.sum(residuals**2)) / total)


@dataclass(frozen=True)
class PairedDifference:
    """How much more a model loses than another on the same text, nats a token; below 0 is better."""

    nats_per_token: float
    standard_error: float | None


def subtract_losses(losses: SequenceLosses, baseline: SequenceLosses) -> PairedDifference:
    """The difference of two models' mean NLLs on the same sequences, and its standard error by the differences of each.

    The two must be of the same text (`is_of_the_same_text`).
    """
    assert losses.is_of_the_same_text(baseline)
    differences = losses.nll_sum - baseline.nll_sum
    total = max(int(losses.num_scored_tokens.sum()), 1)
    return PairedDifference(
        float(differences.sum() / total), ratio_standard_error(differences, losses.num_scored_tokens, losses.document_id)
    )


def write_losses(storage: Storage, training_id: str, losses: SequenceLosses, elsewhere: str | None = None) -> str:
    """Publishes the losses of a finished training's model, on text from `elsewhere` below that text's id; returns the file's digest."""
    columns = [
        pa.array(losses.sequence_id, pa.int64()),
        pa.array(losses.domain.tolist(), pa.string()).dictionary_encode(),
        pa.array(losses.document_id, pa.int64()),
        pa.array(losses.num_scored_tokens.astype(np.int32)),
        pa.array(losses.nll_sum, pa.float64()),
    ]
    table = pa.Table.from_arrays(columns, schema=_SCHEMA)
    return publish_table(storage, layout.heldout_losses(training_id, elsewhere), table, compression="zstd")[0]


def find_losses(storage: Storage, training_id: str, digest: str | None, elsewhere: str | None = None) -> SequenceLosses | None:
    """The losses that an evaluation with this digest was made of; None where there are none, or others."""
    path = layout.heldout_losses(training_id, elsewhere)
    if digest is None or not storage.exists(path):
        return None
    content = storage.read_bytes(path)
    if digest_stream(pa.BufferReader(content)) != digest:
        return None
    table = pq.read_table(pa.BufferReader(content), schema=_SCHEMA)
    return SequenceLosses(
        sequence_id=table["sequence_id"].to_numpy(),
        domain=np.array(table["domain"].to_pylist(), dtype=np.str_),
        document_id=table["document_id"].to_numpy(),
        num_scored_tokens=table["num_scored_tokens"].to_numpy().astype(np.int64),
        nll_sum=table["nll_sum"].to_numpy(),
    )
