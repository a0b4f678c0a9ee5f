"""One pass over source files: records are read, tokenised and given to the assembly of their split, in order.

At the speed of the tokenizer and in bounded memory: one batch is tokenised while the one before it is packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from miniplm.config.run import CorpusConfig
from miniplm.corpus.assembly import CloseShard, SplitAssembly
from miniplm.corpus.identity import PlannedFile
from miniplm.corpus.packing import SentenceEnds
from miniplm.corpus.splits import assign_split
from miniplm.corpus.state import SplitState
from miniplm.layout import SPLITS
from miniplm.progress import Progress, ProgressCallback
from miniplm.records.manifests import SourceEntry, Split
from miniplm.sources.documents import Document, Rejection, SourceRecord, make_excerpt
from miniplm.sources.reading import read_source_records
from miniplm.tokenizers.tokenizer import CorpusTokenizer, TokenIds

# Texts tokenised together: enough for many cores, little enough to hold several times over.
_BATCH_BYTES = 4 << 20
_BATCH_RECORDS = 1000


@dataclass(frozen=True)
class _FileEnd:
    """All records of a file have been read."""

    planned: PlannedFile
    first_document_id: int
    num_records: int


@dataclass(frozen=True)
class _Batch:
    """Records in order; `needed` are those that are documents still to be packed, with their splits and token ids."""

    items: list[SourceRecord | _FileEnd]
    needed: dict[int, Split]
    token_ids: Future[list[TokenIds]]


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
        for batch in self._tokenise(self._read_batches()):
            token_ids = dict(zip(batch.needed, batch.token_ids.result(), strict=True))
            for item in batch.items:
                if isinstance(item, _FileEnd):
                    self._end_file(item)
                else:
                    self.document_id = item.document_id
                    self._take(item, batch.needed.get(item.document_id), token_ids.get(item.document_id))
            self._report()
            yield
        self.document_id = self.next_document_id

    def finish(self) -> None:
        """Closes the last shard of each split, once all documents were taken in."""
        for assembly in self.assemblies.values():
            assembly.finish(self.next_document_id)

    def _take(self, record: SourceRecord, split: Split | None, token_ids: TokenIds | None) -> None:
        """Packs a document of token ids (num_tokens,), or counts a rejection."""
        if isinstance(record, Rejection):
            self._on_rejection(record)
            return
        self._num_documents += 1
        if split is None or token_ids is None:
            return  # its sequences lie in closed shards, or in the packers that the state gave back
        if not len(token_ids):
            message = "the tokenizer makes no token of the text"
            self._on_rejection(Rejection(record.document_id, record.origin, "no_tokens", message, make_excerpt(record.text)))
            return
        self._num_tokens += len(token_ids) + 1
        self.assemblies[split].add_document(record, token_ids)

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

    def _read_batches(self) -> Iterator[list[SourceRecord | _FileEnd]]:
        items: list[SourceRecord | _FileEnd] = []
        num_bytes = 0
        for item in self._read_items():
            items.append(item)
            num_bytes += item.num_bytes if isinstance(item, Document) else 0
            if num_bytes >= _BATCH_BYTES or len(items) >= _BATCH_RECORDS:
                yield items
                items, num_bytes = [], 0
        if items:
            yield items

    def _read_items(self) -> Iterator[SourceRecord | _FileEnd]:
        document_id = self.next_document_id
        self._num_bytes_read = sum(source.num_bytes for source in self.sources)
        for planned in self._files[len(self.sources) :]:
            num_bytes_before = self._num_bytes_read
            num_skipped = max(0, self._resumed_at - document_id)
            num_records = num_skipped
            for record in read_source_records(planned.file, planned.source, document_id, num_skipped, self._count_bytes):
                num_records += 1
                yield record
            self._num_bytes_read = num_bytes_before + planned.file.num_bytes
            yield _FileEnd(planned, document_id, num_records)
            document_id += num_records

    def _count_bytes(self, num_bytes: int) -> None:
        self._num_bytes_read += num_bytes

    def _tokenise(self, batches: Iterator[list[SourceRecord | _FileEnd]]) -> Iterator[_Batch]:
        """Each batch with its token ids to come: one batch is tokenised while the one before it is packed."""
        # One: the Rust tokenizer uses all cores by itself, and lets go of the interpreter while it does.
        with ThreadPoolExecutor(1) as thread:
            waiting: _Batch | None = None
            for items in batches:
                needed = {document.document_id: (document.text, split) for document, split in self._choose_needed(items)}
                texts = [text for text, _ in needed.values()]
                encoded = thread.submit(self._tokenizer.encode_documents, texts)
                if waiting is not None:
                    yield waiting
                waiting = _Batch(items, {document_id: split for document_id, (_, split) in needed.items()}, encoded)
            if waiting is not None:
                yield waiting

    def _choose_needed(self, items: list[SourceRecord | _FileEnd]) -> Iterator[tuple[Document, Split]]:
        for item in items:
            if isinstance(item, Document):
                split = assign_split(item.text.encode("utf-8"), self._config.seed, self._config.splits)
                if self.assemblies[split].needs(item.document_id):
                    yield item, split

    def _report(self) -> None:
        total = sum(planned.file.num_bytes for planned in self._files)
        detail = f"{self._num_documents:,} documents, {self._num_tokens:,} tokens"
        self._on_progress(Progress("prepare", min(self._num_bytes_read, total), total, "bytes", detail))
