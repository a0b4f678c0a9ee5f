"""Makes lost shards of a corpus and of those it extends again, each from the files of the corpus that it was made for.

Nothing else is written: the shards that are there, the manifests and the scores stay as they are.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus.assembly import SplitAssembly
from miniplm.corpus.document_pass import DocumentPass
from miniplm.corpus.growth import count_offsets
from miniplm.corpus.identity import PlannedFile, index_by_content
from miniplm.corpus.shards import OpenShard
from miniplm.corpus.state import find_missing_shards
from miniplm.errors import CorpusError, list_offenders
from miniplm.progress import ProgressCallback
from miniplm.records.manifests import CorpusManifest, ShardEntry, SourceEntry
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage, digest_file
from miniplm.tokenizers.tokenizer import CorpusTokenizer


def mend_shards(
    storage: Storage,
    config: CorpusConfig,
    corpus: CorpusManifest,
    found: Iterable[PlannedFile],
    tokenizer: CorpusTokenizer,
    on_progress: ProgressCallback,
) -> None:
    """Publishes the shards that a corpus lists and that are not there with their size, with the bytes they had.

    `found` are all source files there are. Raises `CorpusError` where a file that the shards were made of is not
    among them, or where this program makes other bytes of it, which are not written.
    """
    missing = list(find_missing_shards(storage, corpus.shards))
    found = list(found)
    for corpus_id in corpus.lineage:
        lost = [shard for shard in missing if shard.corpus_id == corpus_id]
        if lost:
            sources = [source for source in corpus.sources if (source.corpus_id or corpus.corpus_id) == corpus_id]
            files = _find_files(storage, sources, found, lost)
            with exclusive(storage, layout.corpus_folder(corpus_id), f"corpus {corpus_id}"):
                _Mending(storage, config, tokenizer, corpus, corpus_id, files, lost, on_progress).run()


def _find_files(
    storage: Storage, sources: Iterable[SourceEntry], found: Iterable[PlannedFile], lost: Sequence[ShardEntry]
) -> list[PlannedFile]:
    """The files of some entries, in their order, whatever they are called by now."""
    by_content = index_by_content(found)
    files, gone = [], []
    for source in sources:
        planned_or_none = by_content.get((source.digest, source.reading))
        if planned_or_none is None:
            gone.append(source.path)
        else:
            files.append(planned_or_none)
    if gone:
        raise CorpusError(
            f"{_name_shards(storage, lost)}, and source files that the corpus was made of are not there either: {list_offenders(gone)}. "
            "Put these files back, under any name that corpus.sources matches, and run `miniplm prepare CONFIG`: the shards are made "
            "again with the same content, and the scores stay good. Or restore the shards from a copy. Or set corpus.extend=false "
            "once, which makes the corpus anew of the files found and has all of it scored again"
        )
    return files


def _name_shards(storage: Storage, lost: Sequence[ShardEntry]) -> str:
    names = [f"{layout.shard_name(shard.shard_index)} of the {shard.split} split" for shard in lost]
    first = storage.url(layout.corpus_shard(lost[0].corpus_id, lost[0].split, lost[0].shard_index))
    verb = "is" if len(lost) == 1 else "are"
    return f"{list_offenders(names)} of corpus {lost[0].corpus_id} {verb} missing or cut off (there is no whole {first})"


class _Mending:
    """One pass over the files of one corpus, up to the last shard that is lost."""

    def __init__(
        self,
        storage: Storage,
        config: CorpusConfig,
        tokenizer: CorpusTokenizer,
        corpus: CorpusManifest,
        corpus_id: str,
        files: Sequence[PlannedFile],
        lost: Sequence[ShardEntry],
        on_progress: ProgressCallback,
    ) -> None:
        self._storage = storage
        self._corpus_id = corpus_id
        self._lost = {(shard.split, shard.shard_index): shard for shard in lost}
        self._expected = {(shard.split, shard.shard_index): shard for shard in corpus.shards if shard.corpus_id == corpus_id}
        before = set(corpus.lineage[: corpus.lineage.index(corpus_id)])
        offsets = count_offsets(
            [source for source in corpus.sources if source.corpus_id in before],
            [shard for shard in corpus.shards if shard.corpus_id in before],
        )
        self._documents = DocumentPass(
            config,
            tokenizer,
            corpus_id,
            files,
            offsets.document_id,
            [],
            offsets.make_states(),
            self._close_shard,
            lambda rejection: None,  # in quarantine since the corpus was prepared
            on_progress,
        )

    def run(self) -> None:
        for _ in self._documents.take_batches():
            if not self._lost:
                return
        self._documents.finish()
        assert not self._lost, "a shard was not made again"

    def _close_shard(self, assembly: SplitAssembly, shard: OpenShard) -> None:
        if not self._lost:
            return
        key = (assembly.split, assembly.state.next_shard_index - 1)
        expected = self._expected.get(key)
        with tempfile.TemporaryDirectory(prefix="miniplm-") as folder:
            path = Path(folder) / "shard.parquet"
            shard.write(path, expected.first_sequence_id if expected else 0)
            # Those that are not lost are compared too: a difference is found at the first shard, not at the last.
            if expected is None or digest_file(path) != expected.digest:
                raise CorpusError(
                    f"{_name_shards(self._storage, list(self._lost.values()))}, and cannot be made again: of the same files this "
                    f"program makes {layout.shard_name(key[1])} of the {key[0]} split with other bytes than before, as other versions "
                    f"of miniplm, pyarrow or tokenizers do ({self._storage.url(layout.corpus_manifest(self._corpus_id))} says "
                    "which were used). Restore the shards from a copy, or run `miniplm prepare CONFIG` with those versions, or set "
                    "corpus.extend=false once, which makes the corpus anew and has all of it scored again"
                )
            # Copied into place only now: bytes that differ are never published under a digest that is not theirs.
            if self._lost.pop(key, None) is not None:
                with self._storage.publish(layout.corpus_shard(self._corpus_id, *key)) as target:
                    shutil.copyfile(path, target)
