"""The source files of a corpus in parts, which others tokenise: how they are cut, what lies at the storage root meanwhile, and all of it read in order.

A part is one file, or several small ones in a row; no part of a file, since compressed ones are read from their start. Its documents are
numbered from 0, as nobody knows yet how many lie before. Who makes a part again makes the same bytes.
"""

from __future__ import annotations

import posixpath
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from itertools import pairwise

from miniplm import layout
from miniplm.config.run import SourceConfig
from miniplm.corpus.encoding import NO_DOCUMENTS, EncodedDocuments
from miniplm.corpus.file_encoding import EncodedBatch, FileEnd, read_ahead
from miniplm.corpus.identity import PlannedFile
from miniplm.corpus.token_blocks import drop_before, read_block
from miniplm.errors import DamagedFileError, StoppedError
from miniplm.records.manifests import Record, Split
from miniplm.records.stored import find_record
from miniplm.sources.compression import Compression
from miniplm.sources.documents import Rejection
from miniplm.storage.root import Storage, digest_content

# Of unpacked text: half a minute of one core. A larger file is a part of its own.
_PART_BYTES = 256 << 20
# Of a smaller corpus so many parts, or one a file, so that each worker has some.
_NUM_PARTS = 64


class PartFile(Record):
    """A source file as it was when the preparation began; `content_bytes` is about what it holds once it is unpacked."""

    path: str
    source: SourceConfig
    digest: str
    num_bytes: int
    version: str
    compression: Compression | None
    content_bytes: int


class PartFiles(Record):
    """The files in the order of their documents; part i has those from `ends[i - 1]` (0 for the first) to before `ends[i]`."""

    files: tuple[PartFile, ...]
    ends: tuple[int, ...]

    @property
    def parts(self) -> list[range]:
        return [range(start, stop) for start, stop in pairwise((0, *self.ends))]


class PartsPlan(Record):
    """What every maker of parts has to agree on; parts of another `plan_id` are not taken for these."""

    plan_id: str
    versions: dict[str, str]
    encoding_digest: str
    vocab_size: int


class TokenPart(Record):
    """A part that is made: `num_records` of each of its files, rejected ones included, and the digest of each of its blocks."""

    plan_id: str
    part_index: int
    num_records: tuple[int, ...]
    blocks: tuple[str, ...]
    worker: str
    seconds: float


class PartsFolder:
    """Where the parts of a corpus lie that are made by one plan."""

    def __init__(self, storage: Storage, corpus_id: str, plan_id: str) -> None:
        self.storage, self.corpus_id, self.plan_id = storage, corpus_id, plan_id

    def find_plan(self) -> PartsPlan | None:
        return find_record(self.storage, layout.parts_plan(self.corpus_id, self.plan_id), PartsPlan)

    def find_files(self) -> PartFiles | None:
        return find_record(self.storage, layout.parts_files(self.corpus_id, self.plan_id), PartFiles)

    def open(self, plan: PartsPlan, files: PartFiles) -> None:
        """Lets parts be made; what dead parents have had made by other plans is deleted.

        Raises `StoppedError` where another process has finished the corpus meanwhile, as one may where there are no locks.
        """
        if self.storage.is_local:  # the corpus is locked; elsewhere a parent of another version may be at work
            for other in set(self.storage.list_names(layout.corpus_parts(self.corpus_id))) - {self.plan_id}:
                _delete_plan(self.storage, self.corpus_id, other)
        # The plan first: a folder without one is of no use to anybody (`delete_late_parts`).
        self.storage.write_json(layout.parts_plan(self.corpus_id, self.plan_id), plan.as_json())
        self.storage.write_json(layout.parts_files(self.corpus_id, self.plan_id), files.as_json())
        if self.storage.exists(layout.corpus_manifest(self.corpus_id)):
            delete_parts(self.storage, self.corpus_id)
            raise StoppedError(f"corpus {self.corpus_id} was prepared by others meanwhile")

    def require_open(self) -> None:
        """Raises `StoppedError` where these parts are wanted no more: a process that was taken for dead is to leave nothing behind."""
        if self.find_plan() is None:
            raise StoppedError(f"corpus {self.corpus_id} was prepared, or given up, by others meanwhile; nothing of this is kept")

    def list_parts(self) -> list[int]:
        """The parts that have a record, by its name alone: a request to a store for every thousand."""
        names = self.storage.list_names(layout.plan_parts(self.corpus_id, self.plan_id))
        return [int(name.removeprefix("part-").removesuffix(".json")) for name in names if name.startswith("part-")]

    def find_part(self, part_index: int) -> TokenPart | None:
        """A part that is made: its record is written last."""
        return find_record(self.storage, layout.token_part(self.corpus_id, self.plan_id, part_index), TokenPart)

    def save_part(self, part: TokenPart) -> None:
        self.storage.write_json(layout.token_part(self.corpus_id, self.plan_id, part.part_index), part.as_json())

    def read_blocks(self, part: TokenPart) -> Iterator[EncodedDocuments]:
        """The batches of a part; a block is held to its digest before anything of it is given.

        Raises `StoppedError` where the parts are gone, and `DamagedFileError` where only this block is gone or not as it was written.
        """
        for index, digest in enumerate(part.blocks):
            path = layout.token_block(self.corpus_id, self.plan_id, part.part_index, index)
            content, is_held = b"", False
            try:
                content, is_held = self.storage.read_checked(path, digest)
            except FileNotFoundError:
                self.require_open()
            if not is_held:
                self.storage.delete(layout.token_part(self.corpus_id, self.plan_id, part.part_index))
                raise DamagedFileError(
                    f"{self.storage.url(path)} is gone or is not as it was written; run the same command again: this part is made again"
                )
            yield from read_block(content)


def delete_parts(storage: Storage, corpus_id: str) -> None:
    """Deletes all parts of a corpus, whatever plan they were made by."""
    for plan_id in storage.list_names(layout.corpus_parts(corpus_id)):
        _delete_plan(storage, corpus_id, plan_id)
    storage.delete(layout.corpus_parts(corpus_id))


def _delete_plan(storage: Storage, corpus_id: str, plan_id: str) -> None:
    """The plan first: who makes parts sees that they are wanted no more."""
    storage.delete(layout.parts_plan(corpus_id, plan_id))
    storage.delete(layout.plan_parts(corpus_id, plan_id))


def delete_late_parts(storage: Storage) -> int:
    """Deletes what processes that were taken for dead have laid down after the parts of a corpus were deleted; says of how many plans."""
    num_deleted = 0
    for corpus_id in storage.list_names(layout.CORPORA_PARTS):
        plan_ids = storage.list_names(layout.corpus_parts(corpus_id))
        if "plan.json" in plan_ids:  # parts of a version that had one plan a corpus, and may be at work
            continue
        for plan_id in plan_ids:
            folder = layout.plan_parts(corpus_id, plan_id)
            names = storage.list_names(folder)
            # Empty it may be that of a parent that is writing the plan.
            if names and posixpath.basename(layout.parts_plan(corpus_id, plan_id)) not in names:
                with suppress(OSError):  # "Directory not empty": the late one is at it still, and the next run looks again
                    storage.delete(folder)
                num_deleted += 1
    return num_deleted


# Has the parts of a range made by others, and gives each in this order once it is there; raises what keeps one from being made.
MakeParts = Callable[[PartsFolder, PartsPlan, PartFiles, range], Generator[TokenPart]]


class TokenParts:
    """The encoded documents of files that others read and tokenise."""

    def __init__(
        self,
        storage: Storage,
        corpus_id: str,
        files: Sequence[PlannedFile],
        versions: dict[str, str],
        encoding_digest: str,
        vocab_size: int,
        make_parts: MakeParts,
    ) -> None:
        self._files, self._make_parts = files, make_parts
        self._cut = cut_parts(files)
        named = digest_content([corpus_id, versions, encoding_digest, self._cut.ends])
        self._folder = PartsFolder(storage, corpus_id, named)
        self._plan = PartsPlan(plan_id=named, versions=versions, encoding_digest=encoding_digest, vocab_size=vocab_size)

    def read(
        self, num_ended: int, first_document_id: int, resumed_at: int, needed_from: dict[Split, int]
    ) -> Generator[EncodedBatch]:
        """All records from document `resumed_at` on, as `encode_files` gives them, of the documents those that their split needs.

        `num_ended` of the files are not asked for; the first record of the next one is document `first_document_id`.
        """
        first = bisect_right(self._cut.ends, num_ended)
        if first == len(self._cut.ends):
            return
        self._folder.open(self._plan, self._cut)
        parts = self._cut.parts
        num_skipped = num_ended - parts[first].start
        num_bytes_read = -sum(planned.file.num_bytes for planned in self._files[parts[first].start : num_ended])
        made = self._make_parts(self._folder, self._plan, self._cut, range(first, len(parts)))
        with closing(made), ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            for part in made:
                files = self._files[parts[part.part_index].start : parts[part.part_index].stop]
                num_bytes = sum(planned.file.num_bytes for planned in files)
                first_document_id -= sum(part.num_records[:num_skipped])
                ends = _list_ends(files, part, first_document_id)
                starts = [end.first_document_id for end in ends]
                next_document_id, waiting = first_document_id, deque(ends[num_skipped:])
                for batch in read_ahead(reader, self._folder.read_blocks(part)):
                    documents = _place(batch, first_document_id, files, starts)
                    next_document_id = _find_last(documents) + 1
                    share = (next_document_id - first_document_id) / sum(part.num_records)
                    ended = []
                    while waiting and waiting[0].next_document_id <= next_document_id:
                        ended.append(waiting.popleft())
                    kept = drop_before(documents, resumed_at, needed_from)
                    yield EncodedBatch(kept, ended, num_bytes_read + int(share * num_bytes))
                num_bytes_read += num_bytes
                yield EncodedBatch(NO_DOCUMENTS, list(waiting), num_bytes_read)
                first_document_id, num_skipped = ends[-1].next_document_id, 0


def cut_parts(files: Sequence[PlannedFile]) -> PartFiles:
    """The files in parts of about the same size, each of at least one."""
    most = min(_PART_BYTES, sum(planned.content_bytes for planned in files) // _NUM_PARTS)
    ends: list[int] = []
    size = 0
    for index, planned in enumerate(files):
        if size and size + planned.content_bytes > most:
            ends.append(index)
            size = 0
        size += max(1, planned.content_bytes)
    if files:
        ends.append(len(files))
    return PartFiles(files=tuple(_describe(planned) for planned in files), ends=tuple(ends))


def _describe(planned: PlannedFile) -> PartFile:
    file = planned.file
    return PartFile(
        path=file.path,
        source=planned.source,
        digest=planned.digest,
        num_bytes=file.num_bytes,
        version=file.version,
        compression=planned.compression,
        content_bytes=planned.content_bytes,
    )


def _list_ends(files: Sequence[PlannedFile], part: TokenPart, first_document_id: int) -> list[FileEnd]:
    ends = []
    for planned, num_records in zip(files, part.num_records, strict=True):
        ends.append(FileEnd(planned, first_document_id, num_records))
        first_document_id += num_records
    return ends


def _place(
    batch: EncodedDocuments, first_document_id: int, files: Sequence[PlannedFile], starts: Sequence[int]
) -> EncodedDocuments:
    """A batch of a part whose first record is document `first_document_id`; its files begin at the documents `starts`."""

    def place(one: Rejection) -> Rejection:
        document_id = one.document_id + first_document_id
        path = files[bisect_right(starts, document_id) - 1].file.path
        return replace(one, document_id=document_id, origin=one.origin._replace(path=path))

    document_ids = [document_id + first_document_id for document_id in batch.document_ids]
    return replace(batch, document_ids=document_ids, rejections=[place(one) for one in batch.rejections])


def _find_last(batch: EncodedDocuments) -> int:
    rejected = batch.rejections[-1].document_id if batch.rejections else -1
    return max(rejected, batch.document_ids[-1] if batch.document_ids else -1)
