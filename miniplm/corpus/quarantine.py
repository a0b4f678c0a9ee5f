"""Rejected records: counted by reason and written down, each with its origin, so that nothing is dropped silently."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

from miniplm import layout
from miniplm.sources.documents import Rejection

# Rejections held in memory; a file of them takes at most a few MB.
_FILE_REJECTIONS = 5000


class Quarantine:
    """Gives rejections to `write`, in files of `quarantine/` that begin anew with each `flush`.

    `num_records_checked` says how many records were counted here before: those are not counted again.
    """

    def __init__(
        self,
        write: Callable[[str, bytes], object],
        corpus_id: str,
        num_records_checked: int = 0,
        rejected: dict[str, int] | None = None,
        rejected_by_file: dict[str, int] | None = None,
        num_files: int = 0,
    ) -> None:
        self.num_files = num_files
        # For a message about them; None where all were counted before.
        self.first: Rejection | None = None
        self._write = write
        self._corpus_id = corpus_id
        self._num_records_checked = num_records_checked
        self._rejected = Counter(rejected or {})
        self._rejected_by_file = Counter(rejected_by_file or {})
        self._waiting: list[Rejection] = []

    @property
    def rejected(self) -> dict[str, int]:
        """Rejected records by reason."""
        return dict(sorted(self._rejected.items()))

    @property
    def rejected_by_file(self) -> dict[str, int]:
        """Rejected records by the file that holds them."""
        return dict(sorted(self._rejected_by_file.items()))

    def add(self, rejection: Rejection) -> None:
        if rejection.document_id < self._num_records_checked:
            return
        self.first = self.first or rejection
        self._rejected[rejection.reason] += 1
        self._rejected_by_file[rejection.origin.path] += 1
        self._waiting.append(rejection)
        if len(self._waiting) == _FILE_REJECTIONS:
            self.flush()

    def flush(self) -> None:
        """Publishes what is waiting as one file."""
        if not self._waiting:
            return
        rows = "".join(json.dumps(rejection.as_json(), ensure_ascii=False) + "\n" for rejection in self._waiting)
        # Numbered, not named by content: after a kill the same rejections are written again under the same name.
        self._write(layout.quarantine_file(self._corpus_id, self.num_files), rows.encode("utf-8"))
        self.num_files += 1
        self._waiting = []
