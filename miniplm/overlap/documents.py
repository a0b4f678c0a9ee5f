"""The documents of a shard, each in one piece: a sequence holds parts of several, and a long one lies in several sequences.

Shapes: T tokens, D documents, P parts of documents (what one sequence has of one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.corpus.reader import read_shard
from miniplm.records.manifests import CorpusManifest, ShardEntry
from miniplm.storage.root import Storage

_COLUMNS = ["sequence_id", "domain", "document_ids", "token_ids"]


@dataclass(frozen=True)
class ShardDocuments:
    """Document d has `token_ids[bounds[d]:bounds[d + 1]]`, its EOS included; `is_open` where it may begin or end in another shard.

    Part p is what sequence `part_sequences[p]` has of document `part_documents[p]`: `token_ids[part_bounds[p]:part_bounds[p + 1]]`.
    """

    token_ids: NDArray[Any]  # (T,)
    document_ids: NDArray[np.int64]  # (D,)
    bounds: NDArray[np.int64]  # (D + 1,)
    is_open: NDArray[np.bool_]  # (D,)
    part_documents: NDArray[np.int64]  # (P,), places from 0 to D - 1, ascending
    part_sequences: NDArray[np.int64]  # (P,)
    part_bounds: NDArray[np.int64]  # (P + 1,)

    @property
    def part_tokens(self) -> NDArray[np.int64]:  # (P,)
        return np.diff(self.part_bounds)


def read_documents(storage: Storage, corpus: CorpusManifest, shard: ShardEntry) -> ShardDocuments:
    """The documents of a shard, those of a domain one after the other. Raises `CorpusError` where the shard is damaged.

    Where a sequence has more EOS than documents, as a text may hold one, what follows the last that is accounted for is its last document's.
    Memory: thrice the shard's token ids.
    """
    table = read_shard(storage, shard, columns=_COLUMNS).combine_chunks()
    codes = table["domain"].combine_chunks().dictionary_encode()
    if hasattr(codes, "combine_chunks"):
        codes = codes.combine_chunks()
    domains = codes.indices.to_numpy()
    # A document's parts lie one after the other in the sequences of its domain.
    order = np.argsort(domains, kind="stable")
    table = table.take(order)
    domains = domains[order]
    sequence_ids = table["sequence_id"].to_numpy()
    tokens = table["token_ids"].combine_chunks()
    row_bounds = np.concatenate([[0], np.cumsum(tokens.value_lengths().to_numpy(zero_copy_only=False))]).astype(np.int64)
    token_ids = tokens.flatten().to_numpy()
    documents = table["document_ids"].combine_chunks()
    num_documents = documents.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    first_document = np.cumsum(num_documents) - num_documents
    starts = np.unique(np.concatenate([row_bounds[:-1], np.flatnonzero(token_ids == corpus.tokenizer.eos_token_id) + 1]))
    starts = starts[starts < len(token_ids)]
    rows = np.searchsorted(row_bounds, starts, "right") - 1
    number = np.arange(len(starts)) - np.searchsorted(rows, rows)
    owners = documents.flatten().to_numpy()[first_document[rows] + np.minimum(number, num_documents[rows] - 1)]
    # Pieces of one document in one sequence are one part, and parts of one document that follow each other are that document.
    is_part = np.ones(len(starts), dtype=np.bool_)
    is_part[1:] = (rows[1:] != rows[:-1]) | (owners[1:] != owners[:-1])
    starts, rows, owners = starts[is_part], rows[is_part], owners[is_part]
    is_document = np.ones(len(starts), dtype=np.bool_)
    is_document[1:] = (owners[1:] != owners[:-1]) | (domains[rows[1:]] != domains[rows[:-1]])
    of_domain = domains[rows[is_document]]
    is_open = np.ones(len(of_domain), dtype=np.bool_)
    is_open[1:-1] = (of_domain[1:-1] != of_domain[:-2]) | (of_domain[1:-1] != of_domain[2:])
    return ShardDocuments(
        token_ids=token_ids,
        document_ids=owners[is_document],
        bounds=np.append(starts[is_document], len(token_ids)),
        is_open=is_open,
        part_documents=np.cumsum(is_document) - 1,
        part_sequences=sequence_ids[rows],
        part_bounds=np.append(starts, len(token_ids)),
    )
