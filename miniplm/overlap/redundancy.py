"""Which sequences or documents say what a better one says: of each group of copies one document stays, the rest is left out.

What is ranked, best first, is taken one by one. A document whose group has none yet stands for it from then on; a row is redundant where
four fifths of its tokens or more are of documents whose group another document stands for. So a text is never lost for a worse copy of itself,
a packed sequence that holds a copy among other text stays, and what is left out follows from scores and ids alone.

Shapes: R rows that hold parts of documents with copies, P such parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# As much as two documents share that are alike.
REDUNDANT_SHARE = 0.8

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class CopiedParts:
    """Parts of documents that have copies, (P,) each, in the order of the rows (sequences or documents) that they are in."""

    row_ids: Ids
    document_ids: Ids
    group_ids: Ids
    num_tokens: Ids


def find_redundant(parts: CopiedParts, row_ids: Ids, num_tokens: NDArray[Any], keys: NDArray[np.float64]) -> Ids:
    """The ids of rows that are redundant, ascending; of rows with parts their ids, tokens and keys are given, (R,) each, ids ascending.

    A row with the key NaN is not ranked, and stands for nothing. Ties go to the smaller id.
    """
    first = np.searchsorted(parts.row_ids, row_ids, "left").tolist()
    stop = np.searchsorted(parts.row_ids, row_ids, "right").tolist()
    documents, groups, tokens = parts.document_ids.tolist(), parts.group_ids.tolist(), parts.num_tokens.tolist()
    ranked = np.flatnonzero(~np.isnan(keys))
    order = ranked[np.lexsort((row_ids[ranked], -keys[ranked]))]
    standing: dict[int, int] = {}
    redundant = []
    for row in order.tolist():
        here = range(first[row], stop[row])
        num_copied = sum(tokens[part] for part in here if standing.get(groups[part], documents[part]) != documents[part])
        if num_copied >= REDUNDANT_SHARE * int(num_tokens[row]):
            redundant.append(row)
        else:
            for part in here:
                standing.setdefault(groups[part], documents[part])
    return np.sort(row_ids[np.array(redundant, dtype=np.int64)])
