"""One pass over source files: their documents are tokenised, by other processes where there is much to do, and packed by the assembly of their split, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

from miniplm.config.run import CorpusConfig
from miniplm.corpus.assembly import CloseShard, SplitAssembly
from miniplm.corpus.encoding import EncodingRules
from miniplm.corpus.encoding_processes import open_encoding
from miniplm.corpus.file_encoding import EncodedBatch, FileEnd, encode_files
from miniplm.corpus.identity import PlannedFile
from miniplm.corpus.packing import SentenceEnds
from miniplm.corpus.state import SplitState
from miniplm.corpus.token_parts import TokenParts
from miniplm.layout import SPLITS
from miniplm.progress import Progress, ProgressCallback
from miniplm.records.manifests import SourceEntry, Split
from miniplm.sources.documents import Rejection
from miniplm.tokenizers.tokenizer import CorpusTokenizer


class DocumentPass:
    """Documents of the files, the first record being `first_document_id`, into shards; `states` are those of the splits.

    The files are read and tokenised here, or were by whoever makes `parts` of them. `sources` are the leading files that are not
    read again, and grow as files end; `document_id` is the record being taken in: those before it are done with, as far as
    rejections go.
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
        parts: TokenParts | None = None,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._corpus_id = corpus_id
        self._files = files
        self._first_document_id = first_document_id
        self._on_rejection = on_rejection
        self._on_progress = on_progress
        self._parts = parts
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
        self._num_bytes_before = sum(source.num_bytes for source in self.sources)
        self._num_documents = 0
        self._num_tokens = 0

    @property
    def next_document_id(self) -> int:
        """The id after the last record of the files that were read to their end."""
        return self._first_document_id + sum(source.num_records for source in self.sources)

    def take_batches(self) -> Iterator[None]:
        """Takes in all documents; yields after each batch, so that whoever has seen enough can stop."""
        with closing(self._encode()) as batches:
            for batch in batches:
                self._take(batch)
                self._report(batch)
                yield
        self.document_id = self.next_document_id

    def finish(self) -> None:
        """Closes the last shard of each split, once all documents were taken in."""
        for assembly in self.assemblies.values():
            assembly.finish(self.next_document_id)

    def _take(self, batch: EncodedBatch) -> None:
        """Packs the documents; before each, whatever lies before it: rejections are counted, and files have ended."""
        encoded = batch.documents
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

    def _end_file(self, end: FileEnd) -> None:
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

    def _encode(self) -> Generator[EncodedBatch]:
        """Each batch of the files that are left, in order; the next ones are read and tokenised meanwhile."""
        needed_from = {split: assembly.state.document_id for split, assembly in self.assemblies.items()}
        if self._parts is not None:
            yield from self._parts.read(len(self.sources), self.next_document_id, self._resumed_at, needed_from)
            return
        rules = EncodingRules(self._config.seed, self._config.splits, needed_from, self._config.encoder)
        left = self._files[len(self.sources) :]
        with open_encoding(self._tokenizer, rules, sum(planned.content_bytes for planned in left)) as encoding:
            yield from encode_files(left, encoding, self.next_document_id, self._resumed_at)

    def _report(self, batch: EncodedBatch) -> None:
        total = sum(planned.file.num_bytes for planned in self._files)
        detail = f"{self._num_documents:,} documents, {self._num_tokens:,} tokens"
        num_bytes = self._num_bytes_before + batch.num_bytes_read
        self._on_progress(Progress("prepare", min(num_bytes, total), total, "bytes", detail))
