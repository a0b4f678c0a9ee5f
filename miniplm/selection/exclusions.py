"""What is left out before anything is ranked because of what else is in the corpus or in the texts of evaluation, by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.selection.keys import ShardRows


@dataclass(frozen=True)
class ExcludedIds:
    """The ids (num_ids,), ascending, that are left out for a reason: of sequences, or of documents where these are ranked. 8 bytes each."""

    reason: str
    ids: NDArray[np.int64]

    def find(self, rows: ShardRows) -> NDArray[np.bool_]:
        """True for the sequences of a shard that are left out, (num_sequences,)."""
        sequence_ids = rows.sequence_ids
        found = np.zeros(len(sequence_ids), dtype=np.bool_)
        first, stop = np.searchsorted(self.ids, [rows.shard.first_sequence_id, rows.shard.first_sequence_id + len(found)])
        found[self.ids[first:stop] - rows.shard.first_sequence_id] = True
        return found


@dataclass(frozen=True)
class Exclusions:
    """What a selection leaves out by id. `content` says what decides it, for ids and manifests; `find` looks for it, which may take long."""

    content: dict[str, Any] = field(default_factory=dict)
    find: Callable[[], Sequence[ExcludedIds]] = tuple


NOTHING_EXCLUDED = Exclusions()
