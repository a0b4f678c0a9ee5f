"""Some consecutive records of a file as they are stored: read by one process in the order of the file, parsed by any that has time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from miniplm.config.run import SourceConfig


# With slots: a folder of text files has a part a file.
@dataclass(frozen=True, slots=True)
class SourcePart:
    """Records of the file at `path`, `num_records` of them, of which the first `num_skipped` are not asked for.

    The first is document `first_document_id`, on line or row `first_number` or later. `content` is what its format reads at once, of
    `num_bytes`: whole lines, a file, or rows of columns.
    """

    path: str
    source: SourceConfig
    first_document_id: int
    first_number: int
    num_records: int
    num_skipped: int
    content: Any
    num_bytes: int


SourceParts = Iterator[SourcePart]


def count_skipped(first_record: int, num_records: int, num_skipped: int) -> int:
    """How many of the records of a part are among the first `num_skipped` of their file."""
    return min(num_records, max(0, num_skipped - first_record))
