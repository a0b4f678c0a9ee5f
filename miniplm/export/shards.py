"""What a candidate shard holds, with what was kept of it: the sequences that an export is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from miniplm.corpus.reader import read_shard
from miniplm.errors import CorpusError
from miniplm.records.manifests import CorpusManifest, ScoreShardManifest, ShardEntry
from miniplm.records.selections import SelectionManifest
from miniplm.scoring.documents import read_document_scores
from miniplm.scoring.shards import check_score_shards
from miniplm.selection.kept import read_selection_shard
from miniplm.storage.root import Storage

_COLUMNS = ("sequence_id", "domain", "document_ids", "token_ids")
SCORES = ("teacher_nll", "reference_nll", "difference_score")


# Of a document's part of a sequence: the sums of its NLL under teacher and reference, and how many of its tokens were scored.
PartScores = tuple[float, float, int]


@dataclass(frozen=True)
class ScoredDocuments:
    """The score files of a corpus under both models, by shard index, where all have the scores of documents."""

    teacher: dict[int, ScoreShardManifest]
    reference: dict[int, ScoreShardManifest]

    @property
    def digests(self) -> list[str]:
        """What they are, in the order of the shards."""
        manifests = [*self.teacher.values(), *self.reference.values()]
        return [manifest.documents.digest for manifest in manifests if manifest.documents is not None]


def find_scored_documents(storage: Storage, corpus: CorpusManifest, selection: SelectionManifest) -> ScoredDocuments | None:
    """The scores of documents of the models that the selection is of; None where a shard has none, as those of earlier versions."""
    found: list[dict[int, ScoreShardManifest]] = []
    for model_id in (selection.teacher_id, selection.reference_id):
        states = check_score_shards(storage, corpus, model_id)
        if any(state.manifest is None or state.manifest.documents is None for state in states):
            return None
        found.append({state.shard_index: state.manifest for state in states if state.manifest is not None})
    return ScoredDocuments(*found)


@dataclass(frozen=True)
class KeptShard:
    """The sequences of one candidate shard. Row r has `token_ids[bounds[r]:bounds[r + 1]]`, in which `ends` are the places of EOS.

    `scores` are NaN where a row was not kept. `parts`: the scores of a document's part of a sequence, by both ids; None where none are known.
    `documents`: of a selection by documents, the kept ones with their scores, whatever sequences they lie in; no row is kept as such then.
    """

    first_sequence_id: int
    domains: list[str]
    document_ids: list[list[int]]
    token_ids: NDArray[Any]
    bounds: list[int]
    ends: NDArray[np.int64]
    end_bounds: list[int]
    is_kept: list[bool]
    scores: dict[str, NDArray[np.float64]]
    parts: dict[tuple[int, int], PartScores] | None = None
    documents: dict[int, tuple[float, ...]] | None = None

    def keeps(self, row: int, document_id: int) -> bool:
        """Whether what a row has of a document was kept."""
        return self.is_kept[row] if self.documents is None else document_id in self.documents

    def __len__(self) -> int:
        return len(self.domains)

    def row_tokens(self, row: int) -> NDArray[Any]:  # (num_tokens,)
        return self.token_ids[self.bounds[row] : self.bounds[row + 1]]

    def row_ends(self, row: int) -> list[int]:
        """Where in `token_ids` the row has EOS."""
        found: list[int] = self.ends[self.end_bounds[row] : self.end_bounds[row + 1]].tolist()
        return found


def read_kept_shard(
    storage: Storage,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    position: int,
    documents: ScoredDocuments | None = None,
    number: int = 1,
) -> KeptShard:
    """The shard at a position among the candidate shards, with the scores of its documents where they are given; `number`: of which pass.

    Raises `CorpusError` where it or its selection is damaged, `ScoreError` where the scores of its documents are.
    """
    entry, kept = corpus.split_shards("candidate")[position], selection.shards[position]
    assert entry.shard_index == kept.shard_index, "a selection has one shard for each candidate shard"
    table = read_shard(storage, entry, _COLUMNS).combine_chunks()
    column = table["token_ids"].chunk(0) if len(table) else pa.array([], pa.list_(pa.uint16()))
    token_ids, bounds = column.values.to_numpy(), column.offsets.to_numpy()
    ends = np.flatnonzero(token_ids == corpus.tokenizer.eos_token_id)
    chosen = read_selection_shard(storage, selection.selection_id, kept.shard_index, kept.digest, number)
    by_document = selection.unit == "document"
    rows = np.empty(0, np.int64) if by_document else chosen["sequence_id"].to_numpy() - entry.first_sequence_id
    if len(rows) and not (rows[0] >= 0 and rows[-1] < len(table)):
        raise CorpusError(f"selection {selection.selection_id} has sequences of {entry.title} that the shard does not hold")
    is_kept = np.zeros(len(table), dtype=bool)
    is_kept[rows] = True
    scores = {}
    for name in SCORES:
        scores[name] = np.full(len(table), np.nan)
        scores[name][rows] = np.empty(0) if by_document else chosen[name].to_numpy()
    return KeptShard(
        first_sequence_id=entry.first_sequence_id,
        domains=table["domain"].cast(pa.string()).to_pylist(),
        document_ids=table["document_ids"].to_pylist(),
        token_ids=token_ids,
        bounds=bounds.tolist(),
        ends=ends,
        end_bounds=np.searchsorted(ends, bounds).tolist(),
        is_kept=is_kept.tolist(),
        scores=scores,
        parts=None
        if documents is None or by_document
        else _read_parts(storage, entry, documents, set(chosen["sequence_id"].to_pylist())),
        documents=_read_documents(chosen) if by_document else None,
    )


def _read_documents(chosen: pa.Table) -> dict[int, tuple[float, ...]]:
    """The scores of kept documents (`SCORES`) by id."""
    columns = (chosen[name].to_pylist() for name in SCORES)
    return dict(zip(chosen["document_id"].to_pylist(), zip(*columns, strict=True), strict=True))


def _read_parts(
    storage: Storage, entry: ShardEntry, documents: ScoredDocuments, sequence_ids: set[int]
) -> dict[tuple[int, int], PartScores]:
    """Those of the sequences named, by document and sequence."""
    teacher, reference = (
        read_document_scores(storage, entry, manifests[entry.shard_index]).to_pydict()
        for manifests in (documents.teacher, documents.reference)
    )
    sums: dict[tuple[int, int], PartScores] = {}
    rows = zip(
        teacher["document_id"],
        teacher["sequence_id"],
        teacher["nll_sum"],
        reference["nll_sum"],
        teacher["num_scored_tokens"],
        strict=True,
    )
    for document_id, sequence_id, teacher_sum, reference_sum, num_scored in rows:
        if sequence_id in sequence_ids:
            sums[document_id, sequence_id] = (teacher_sum, reference_sum, num_scored)
    return sums
