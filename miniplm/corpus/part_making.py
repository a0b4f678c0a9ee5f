"""What a worker of a fleet does of a preparation: some source files become token ids, laid down for whoever packs them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus.encoding import EncodedDocuments, EncodingRules
from miniplm.corpus.encoding_processes import Encoding, open_encoding
from miniplm.corpus.file_encoding import encode_files
from miniplm.corpus.identity import PlannedFile
from miniplm.corpus.reader import find_corpus
from miniplm.corpus.state import read_versions
from miniplm.corpus.token_blocks import write_block
from miniplm.corpus.token_parts import PartFile, PartFiles, PartsFolder, PartsPlan, TokenPart
from miniplm.errors import ConfigError, SourceError, StoppedError, TokenizerError, VersionError
from miniplm.layout import SPLITS
from miniplm.progress import Progress, ProgressCallback
from miniplm.sources.digests import digest_source_file
from miniplm.sources.files import SourceFile, find_file
from miniplm.storage.root import Storage, digest_file
from miniplm.tokenizers.tokenizer import load_tokenizer

# Of token ids in memory, so that whoever packs them reads so much at a time; one document may be larger.
_BLOCK_BYTES = 64 << 20
_SEE_ALL = (
    "with execution.prepare=workers each worker reads the sources: name a bucket, or a folder that all machines mount at the same "
    "place; or set execution.prepare=parent"
)


class PartMaking:
    """Makes parts of a corpus that is being prepared, by one set of processes for all of them."""

    def __init__(self, folder: PartsFolder, plan: PartsPlan, files: PartFiles, encoding: Encoding, worker: str) -> None:
        self._folder, self._plan, self._files, self._encoding, self._worker = folder, plan, files, encoding, worker

    def count_bytes(self, part_index: int) -> int:
        """The stored bytes of a part's files."""
        return sum(self._files.files[index].num_bytes for index in self._files.parts[part_index])

    def make(self, part_index: int, on_progress: ProgressCallback) -> TokenPart:
        """A part, which is left as it is where it is made already. Progress counts the stored bytes of its files.

        Raises what reading and tokenising raise, `SourceError` where this worker does not see what the run has seen, and
        `StoppedError` where the part is wanted no more.
        """
        found = self._folder.find_part(part_index)
        if found is not None:
            return found
        began = time.monotonic()
        total = self.count_bytes(part_index)
        files = [_open(self._files.files[index], self._worker) for index in self._files.parts[part_index]]
        blocks: list[str] = []
        num_records: list[int] = []
        waiting: list[EncodedDocuments] = []
        for batch in encode_files(files, self._encoding):
            for end in batch.ends:
                end.planned.file.check_unchanged()
                num_records.append(end.num_records)
            waiting.append(batch.documents)
            if sum(documents.token_ids.nbytes for documents in waiting) >= _BLOCK_BYTES:
                blocks.append(self._publish(part_index, len(blocks), waiting))
                waiting = []
            on_progress(Progress("prepare", min(batch.num_bytes_read, total), total, "bytes"))
        if any(documents.document_ids or documents.rejections for documents in waiting):
            blocks.append(self._publish(part_index, len(blocks), waiting))
        self._folder.require_open()
        part = TokenPart(
            plan_id=self._plan.plan_id,
            part_index=part_index,
            num_records=tuple(num_records),
            blocks=tuple(blocks),
            worker=self._worker,
            seconds=time.monotonic() - began,
        )
        self._folder.save_part(part)
        return part

    def _publish(self, part_index: int, block_index: int, batches: Sequence[EncodedDocuments]) -> str:
        self._folder.require_open()
        with self._folder.storage.publish(
            layout.token_block(self._folder.corpus_id, self._plan.plan_id, part_index, block_index)
        ) as path:
            write_block(path, batches, self._plan.vocab_size)
            return digest_file(path)


@contextmanager
def open_part_making(
    storage: Storage, corpus_id: str, plan_id: str, config: CorpusConfig, part_indices: Sequence[int], worker: str
) -> Iterator[PartMaking]:
    """What makes these parts of a corpus, while the block runs.

    Raises `ConfigError` where the preparation is not to be seen at the storage root, `StoppedError` where it has ended, and `VersionError` or
    `TokenizerError` where this worker would make other token ids.
    """
    folder = PartsFolder(storage, corpus_id, plan_id)
    plan, files = folder.find_plan(), folder.find_files()
    if plan is None or files is None:
        if find_corpus(storage, corpus_id) is not None:
            raise StoppedError(f"corpus {corpus_id} was prepared by others meanwhile")
        raise ConfigError(
            f"worker {worker} does not see the preparation of corpus {corpus_id} at {storage.url(layout.parts_plan(corpus_id, plan_id))}; "
            "do all machines see the same storage?"
        )
    versions = read_versions(config.encoder)
    if versions != plan.versions:
        differing = ", ".join(
            f"{name} {versions.get(name)}, the run {wanted}"
            for name, wanted in plan.versions.items()
            if versions.get(name) != wanted
        )
        raise VersionError(
            f"worker {worker} has {differing}; install the same versions everywhere, as they may make other token ids"
        )
    tokenizer = load_tokenizer(config.tokenizer, config.eos_token, config.trust_remote_code)
    if tokenizer.encoding_digest != plan.encoding_digest:
        raise TokenizerError(
            f"worker {worker} has another tokenizer {config.tokenizer!r} than the run; give all machines the same files of it"
        )
    rules = EncodingRules(config.seed, config.splits, dict.fromkeys(SPLITS, 0), config.encoder)
    num_bytes = sum(files.files[index].content_bytes for part_index in part_indices for index in files.parts[part_index])
    with open_encoding(tokenizer, rules, num_bytes) as encoding:
        yield PartMaking(folder, plan, files, encoding, worker)


def _open(planned: PartFile, worker: str) -> PlannedFile:
    """The file as this worker sees it, which has to be the one that the run has seen."""
    try:
        file = find_file(planned.path)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"worker {worker} does not see the source file {planned.path}; {_SEE_ALL}") from None
    except PermissionError as error:
        raise SourceError(
            f"worker {worker} may not read the source file {planned.path} ({error.strerror or error}); give its user the right to; {_SEE_ALL}"
        ) from error
    if not _is_same(file, planned):
        raise SourceError(
            f"worker {worker} sees another file at {planned.path} ({file.num_bytes:,} bytes) than the run ({planned.num_bytes:,} bytes), or it was "
            f"changed since; {_SEE_ALL}"
        )
    return PlannedFile(file, planned.source, planned.digest, planned.compression)


def _is_same(file: SourceFile, planned: PartFile) -> bool:
    """By what changes with the content; a copy on this machine's own disk has other times, and is read for its digest."""
    if file.num_bytes != planned.num_bytes:
        return False
    return (bool(file.version) and file.version == planned.version) or digest_source_file(file) == planned.digest
