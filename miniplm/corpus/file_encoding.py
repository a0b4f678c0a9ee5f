"""Source files to encoded documents, in order: read by one thread, a batch at a time, each of which is parsed and tokenised somewhere.

In bounded memory: some batches are tokenised while whoever takes them in works on those before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from miniplm.corpus.encoding import EncodedDocuments
from miniplm.corpus.encoding_processes import Encoding
from miniplm.corpus.identity import PlannedFile
from miniplm.sources.parts import SourcePart
from miniplm.sources.reading import read_source_parts

T = TypeVar("T")

# Tokenised together: enough to be worth a message, little enough to hold some for each core several times over.
_BATCH_BYTES = 1 << 20
_BATCH_RECORDS = 1000


@dataclass(frozen=True)
class FileEnd:
    """All records of a file have been read."""

    planned: PlannedFile
    first_document_id: int
    num_records: int

    @property
    def next_document_id(self) -> int:
        return self.first_document_id + self.num_records


@dataclass(frozen=True)
class EncodedBatch:
    """Documents in order, and the files that end among them; `num_bytes_read` of all files' stored bytes were read by then."""

    documents: EncodedDocuments
    ends: list[FileEnd]
    num_bytes_read: int


@dataclass(frozen=True)
class _Batch:
    parts: list[SourcePart] = field(default_factory=list)
    ends: list[FileEnd] = field(default_factory=list)
    num_bytes_read: int = 0


def encode_files(
    files: Sequence[PlannedFile], encoding: Encoding, first_document_id: int = 0, resumed_at: int = 0
) -> Iterator[EncodedBatch]:
    """All records of the files from document `resumed_at` on; the first record of all is document `first_document_id`.

    Raises what reading, parsing and tokenising raise. Whether a file is still the one that was planned is for the caller to see at its end.
    """
    # Taken in the order of the files, whatever was tokenised first: how texts are batched must not show in what is made of them.
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        waiting: deque[tuple[_Batch, Future[EncodedDocuments]]] = deque()
        for batch in read_ahead(reader, _Reading(files, first_document_id, resumed_at).read_batches()):
            waiting.append((batch, encoding.submit(batch.parts)))
            while len(waiting) > encoding.num_ahead:
                yield _take(waiting)
        while waiting:
            yield _take(waiting)


def _take(waiting: deque[tuple[_Batch, Future[EncodedDocuments]]]) -> EncodedBatch:
    batch, encoded = waiting.popleft()
    return EncodedBatch(encoded.result(), batch.ends, batch.num_bytes_read)


class _Reading:
    def __init__(self, files: Sequence[PlannedFile], first_document_id: int, resumed_at: int) -> None:
        self._files, self._first_document_id, self._resumed_at = files, first_document_id, resumed_at
        self._num_bytes_read = 0

    def read_batches(self) -> Iterator[_Batch]:
        parts: list[SourcePart] = []
        ends: list[FileEnd] = []
        num_bytes = num_records = 0
        for item in self._read_items():
            if isinstance(item, FileEnd):
                ends.append(item)
                continue
            parts.append(item)
            num_bytes += item.num_bytes
            num_records += item.num_records
            if num_bytes >= _BATCH_BYTES or num_records >= _BATCH_RECORDS:
                yield _Batch(parts, ends, self._num_bytes_read)
                parts, ends, num_bytes, num_records = [], [], 0, 0
        if parts or ends:
            yield _Batch(parts, ends, self._num_bytes_read)

    def _read_items(self) -> Iterator[SourcePart | FileEnd]:
        document_id = self._first_document_id
        for planned in self._files:
            num_bytes_before = self._num_bytes_read
            num_skipped = max(0, self._resumed_at - document_id)
            next_document_id = document_id + num_skipped
            for part in read_source_parts(planned.file, planned.source, document_id, num_skipped, self._count_bytes):
                next_document_id = part.first_document_id + part.num_records
                yield part
            self._num_bytes_read = num_bytes_before + planned.file.num_bytes
            yield FileEnd(planned, document_id, next_document_id - document_id)
            document_id = next_document_id

    def _count_bytes(self, num_bytes: int) -> None:
        self._num_bytes_read += num_bytes


def read_ahead(thread: ThreadPoolExecutor, items: Iterator[T]) -> Iterator[T]:
    """The items, the next of which is read by the thread while one is worked on: unpacking files lets go of the interpreter."""
    read = partial(next, items, None)
    coming = thread.submit(read)
    while (item := coming.result()) is not None:
        coming = thread.submit(read)
        yield item
