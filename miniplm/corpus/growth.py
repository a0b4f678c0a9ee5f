"""A corpus that grows: which one was prepared last with the same sources and settings, and where its extension goes on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from miniplm import layout
from miniplm.corpus.reader import find_corpus
from miniplm.corpus.state import SplitState
from miniplm.errors import CorpusError, DamagedFileError
from miniplm.layout import SPLITS
from miniplm.records.manifests import CorpusManifest, Record, ShardEntry, SourceEntry, Split
from miniplm.records.stored import find_record, read_record
from miniplm.storage.root import Storage


class NewestCorpus(Record):
    """The corpus that was prepared last, after those that it extends, the first of all first."""

    corpora: tuple[str, ...]


@dataclass(frozen=True)
class Offsets:
    """The first document id, sequence id and shard index of each split that are not taken yet."""

    document_id: int
    sequence_id: int
    shard_indices: dict[Split, int]

    def make_states(self) -> dict[Split, SplitState]:
        """Each split before its first document; packers are empty, as what came before was packed to its end."""
        return {
            split: SplitState(document_id=self.document_id, num_emitted=0, next_shard_index=index, packers={}, counts={})
            for split, index in self.shard_indices.items()
        }


def count_offsets(sources: Iterable[SourceEntry] = (), shards: Iterable[ShardEntry] = ()) -> Offsets:
    """Where a corpus goes on after these files and shards; zeros after none."""
    shards = list(shards)
    return Offsets(
        document_id=sum(source.num_records for source in sources),
        sequence_id=sum(shard.num_sequences for shard in shards),
        shard_indices={split: sum(shard.split == split for shard in shards) for split in SPLITS},
    )


def find_newest_corpus(storage: Storage, settings_digest: str) -> CorpusManifest | None:
    """The corpus that was prepared last with these sources and settings; where it was deleted, the newest that it extends.

    None where none of them is there. Raises `CorpusError` where it is not known which one it was: made anew without a
    word, everything would be scored again.
    """
    path = layout.newest_corpus(settings_digest)
    try:
        corpora = read_record(storage, path, NewestCorpus).corpora
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        raise CorpusError(
            f"{storage.url(path)} is damaged, which says what corpus new files are added to; write "
            '{"corpora": ["c-..."]} there with the ids of that corpus and of those it extends, the first of all first, '
            "or delete it: then the corpus is made anew of all files, and scored again"
        ) from error
    for end in range(len(corpora), 0, -1):
        manifest = find_corpus(storage, corpora[end - 1])
        if manifest is not None and manifest.lineage == corpora[:end]:
            return manifest
    return None


def remember_newest_corpus(storage: Storage, settings_digest: str, manifest: CorpusManifest) -> None:
    """Notes which corpus was prepared last, unless that one or an extension of it is noted already."""
    path = layout.newest_corpus(settings_digest)
    # A run that began with fewer files may end after one that began with more: what it made must not take the place of the extension.
    noted = find_record(storage, path, NewestCorpus)
    if noted is None or manifest.corpus_id not in noted.corpora:
        storage.write_json(path, NewestCorpus(corpora=manifest.lineage).as_json())
