"""One pass over source files: records are read, tokenised and given to the assembly of their split, in order.

In bounded memory: some batches are tokenised, by other processes where there is much to do, while those before them are packed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from miniplm.config.run import CorpusConfig
from miniplm.corpus.assembly import CloseShard, SplitAssembly
from miniplm.corpus.encoding import EncodedDocuments, EncodingRules
from miniplm.corpus.encoding_processes import open_encoding
from miniplm.corpus.identity import PlannedFile
from miniplm.corpus.packing import SentenceEnds
from miniplm.corpus.state import SplitState
from miniplm.layout import SPLITS
from miniplm.progress import Progress, ProgressCallback
from miniplm.records.manifests import SourceEntry, Split
from miniplm.sources.documents import Rejection
from miniplm.sources.parts import SourcePart
from miniplm.sources.reading import read_source_parts
from miniplm.tokenizers.tokenizer import CorpusTokenizer

# Tokenised together: enough to be worth a message, little enough to hold some for each core several times over.
_BATCH_BYTES = 1 << 20
_BATCH_RECORDS = 1000


@dataclass(frozen=True)
class _FileEnd:
    """All records of a file have been read."""

    planned: PlannedFile
    first_document_id: int
    num_records: int

    @property
    def next_document_id(self) -> int:
        return self.first_document_id + self.num_records


@dataclass(frozen=True)
class _Batch:
    """Records in order, and the files that end among them; `num_bytes_read` of the sources' stored bytes were read with it."""

    parts: list[SourcePart] = field(default_factory=list)
    ends: list[_FileEnd] = field(default_factory=list)
    num_bytes_read: int = 0


class DocumentPass:
    """Documents of the files, the first record being `first_document_id`, into shards; `states` are those of the splits.

    `sources` are the leading files that are not read again, and grow as files end; `document_id` is the record being
    taken in: those before it are done with, as far as rejections go.
    """

    def __init__(
        self,
        config: CorpusConfig,
        tokenizer: CorpusTokenizer,
        corpus_id: str,
        files: Sequence[PlannedFile],
        first_document_id: int,
        sources: Sequence[SourceEntry],
        states: dict[Split, SplitState],
        close_shard: CloseShard,
        on_rejection: Callable[[Rejection], None],
        on_progress: ProgressCallback,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._corpus_id = corpus_id
        self._files = files
        self._first_document_id = first_document_id
        self._on_rejection = on_rejection
        self._on_progress = on_progress
        self.sources = list(sources)
        # Where reading goes on: nothing before it is needed by any split.
        self._resumed_at = self.document_id = min(state.document_id for state in states.values())
        ends = SentenceEnds(tokenizer)
        self.assemblies: dict[Split, SplitAssembly] = {
            split: SplitAssembly(
                split,
                ends,
                tokenizer.entry.vocab_size,
                tokenizer.entry.eos_token_id,
                config.sequence_length,
                config.sequences_per_shard,
                close_shard,
                states[split],
            )
            for split in SPLITS  # in this order always: a stored state has another one
        }
        self._num_bytes_read = 0
        self._num_documents = 0
        self._num_tokens = 0

    @property
    def next_document_id(self) -> int:
        """The id after the last record of the files that were read to their end."""
        return self._first_document_id + sum(source.num_records for source in self.sources)

    def take_batches(self) -> Iterator[None]:
        """Takes in all documents; yields after each batch, so that whoever has seen enough can stop."""
        # Taken in the order of the files, whatever was tokenised first: how texts are batched must not show in the corpus.
        for batch, encoded in self._encode():
            self._take(batch, encoded)
            self._report(batch)
            yield
        self.document_id = self.next_document_id

    def finish(self) -> None:
        """Closes the last shard of each split, once all documents were taken in."""
        for assembly in self.assemblies.values():
            assembly.finish(self.next_document_id)

    def _take(self, batch: _Batch, encoded: EncodedDocuments) -> None:
        """Packs the documents; before each, whatever lies before it: rejections are counted, and files have ended."""
        self._num_documents += encoded.num_documents
        self._num_tokens += len(encoded.token_ids) + len(encoded.document_ids)
        rejections, ends = deque(encoded.rejections), deque(batch.ends)
        start = 0
        documents = zip(encoded.document_ids, encoded.splits, encoded.domains, encoded.num_bytes, encoded.num_tokens, strict=True)
        for document_id, split, domain, num_bytes, num_tokens in documents:
            while rejections and rejections[0].document_id < document_id:
                self._reject(rejections.popleft())
            while ends and ends[0].next_document_id <= document_id:
                self._end_file(ends.popleft())
            self.document_id = document_id
            stop = start + num_tokens
            self.assemblies[split].add_document(document_id, domain, num_bytes, encoded.token_ids[start:stop])
            start = stop
        for rejection in rejections:
            self._reject(rejection)
        for end in ends:
            self._end_file(end)

    def _reject(self, rejection: Rejection) -> None:
        self.document_id = rejection.document_id
        self._on_rejection(rejection)

    def _end_file(self, end: _FileEnd) -> None:
        file = end.planned.file
        # Else what was read would not be what the file's digest, and with it the corpus's id, says.
        file.check_unchanged()
        self.sources.append(
            SourceEntry(
                path=file.path,
                digest=end.planned.digest,
                num_bytes=file.num_bytes,
                num_records=end.num_records,
                first_document_id=end.first_document_id,
                corpus_id=self._corpus_id,
                reading=end.planned.reading,
            )
        )

    def _read_batches(self) -> Iterator[_Batch]:
        parts: list[SourcePart] = []
        ends: list[_FileEnd] = []
        num_bytes = num_records = 0
        for item in self._read_items():
            if isinstance(item, _FileEnd):
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

    def _read_items(self) -> Iterator[SourcePart | _FileEnd]:
        document_id = self.next_document_id
        self._num_bytes_read = sum(source.num_bytes for source in self.sources)
        for planned in self._files[len(self.sources) :]:
            num_bytes_before = self._num_bytes_read
            num_skipped = max(0, self._resumed_at - document_id)
            next_document_id = document_id + num_skipped
            for part in read_source_parts(planned.file, planned.source, document_id, num_skipped, self._count_bytes):
                next_document_id = part.first_document_id + part.num_records
                yield part
            self._num_bytes_read = num_bytes_before + planned.file.num_bytes
            yield _FileEnd(planned, document_id, next_document_id - document_id)
            document_id = next_document_id

    def _count_bytes(self, num_bytes: int) -> None:
        self._num_bytes_read += num_bytes

    def _encode(self) -> Iterator[tuple[_Batch, EncodedDocuments]]:
        """Each batch with its documents, in order; the next ones are read and tokenised meanwhile."""
        needed_from = {split: assembly.state.document_id for split, assembly in self.assemblies.items()}
        rules = EncodingRules(self._config.seed, self._config.splits, needed_from, self._config.encoder)
        left = sum(planned.content_bytes for planned in self._files[len(self.sources) :])
        with open_encoding(self._tokenizer, rules, left) as encoding, ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            waiting: deque[tuple[_Batch, Future[EncodedDocuments]]] = deque()
            for batch in _read_ahead(reader, self._read_batches()):
                waiting.append((batch, encoding.submit(batch.parts)))
                while len(waiting) > encoding.num_ahead:
                    batch, encoded = waiting.popleft()
                    yield batch, encoded.result()
            for batch, encoded in waiting:
                yield batch, encoded.result()

    def _report(self, batch: _Batch) -> None:
        total = sum(planned.file.num_bytes for planned in self._files)
        detail = f"{self._num_documents:,} documents, {self._num_tokens:,} tokens"
        self._on_progress(Progress("prepare", min(batch.num_bytes_read, total), total, "bytes", detail))


def _read_ahead(thread: ThreadPoolExecutor, batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """The batches, the next of which is read by the thread while one is worked on: unpacking files lets go of the interpreter."""
    read = partial(next, batches, None)
    coming = thread.submit(read)
    while (batch := coming.result()) is not None:
        coming = thread.submit(read)
        yield batch
