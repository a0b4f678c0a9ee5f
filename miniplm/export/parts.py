"""How an export is cut into parts, one file (or pair of files) each, that can be made in any order and by any process.

One pass over the sequences finds where parts begin and end, in which documents the domains are at that moment, and where documents
go on that a part's last sequences leave open. A part made from that is the same bytes, whatever became of the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from miniplm.errors import CorpusError
from miniplm.export.documents import DocumentWalk, Place
from miniplm.export.shards import KeptShard, ScoredDocuments, read_kept_shard
from miniplm.progress import Progress, ProgressCallback
from miniplm.records.manifests import CorpusManifest, Record
from miniplm.records.selections import SelectionManifest
from miniplm.storage.root import Storage


class PartPlan(Record):
    """Sequences from `start` up to `stop`, each a shard's position and a row, and the later ones, `rest`, that its documents go on in.

    `places`: document, tokens and whether it was kept, of each domain that is in the middle of a document at `start`.
    `num_tokens`: those of its documents, or sequences, EOS included. `number`: the pass over what is kept, where a budget repeats it.
    """

    start: tuple[int, int]
    stop: tuple[int, int]
    places: dict[str, tuple[int, int, bool]]
    rest: tuple[tuple[int, int], ...] = ()
    num_tokens: int
    number: int = 1


class ExportPlan(Record):
    """The parts of an export; the digest-like `export_id` says of what."""

    export_id: str
    parts: tuple[PartPlan, ...]


class _OpenPart:
    def __init__(self, start: tuple[int, int], places: dict[str, tuple[int, int, bool]]) -> None:
        self.start, self.places = start, places
        self.stop = start
        self.rest: list[tuple[int, int]] = []
        # Tokens with their EOS, and how many of them are text.
        self.num_tokens = self.num_text_tokens = 0

    def close(self) -> PartPlan:
        return PartPlan(start=self.start, stop=self.stop, places=self.places, rest=tuple(self.rest), num_tokens=self.num_tokens)


def plan_parts(
    storage: Storage,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    shard_tokens: int,
    of_documents: bool,
    on_progress: ProgressCallback,
    key: str,
) -> tuple[PartPlan, ...]:
    """Cuts the kept sequences, or the documents that they are of, into parts of at least `shard_tokens` tokens; the last may be smaller.

    A document lies whole in the part in which it begins, however long it is. Where a budget repeats what is kept, each pass over it has
    parts of its own, after those of the passes before. Raises `CorpusError` where nothing is kept.
    """
    passes, parts = selection.list_passes(), []
    total = len(passes) * sum(entry.num_tokens for entry in corpus.split_shards("candidate"))
    num_done = 0
    for number in passes:
        planner = _Planner(shard_tokens, of_documents)
        for position in range(len(selection.shards)):
            shard = read_kept_shard(storage, corpus, selection, position, number=number)
            planner.take(position, shard)
            num_done += len(shard.token_ids)
            on_progress(Progress(key, num_done, total, "tokens"))
        parts += [part.model_copy(update={"number": number}) for part in planner.finish((len(selection.shards), 0))]
    return tuple(parts)


class _Planner:
    def __init__(self, shard_tokens: int, of_documents: bool) -> None:
        self._shard_tokens, self._of_documents = shard_tokens, of_documents
        self._walk = DocumentWalk()
        self._parts = [_OpenPart((0, 0), {})]
        # The part that has begun the document in which a domain is.
        self._owners: dict[str, _OpenPart] = {}

    def take(self, position: int, shard: KeptShard) -> None:
        for row in range(len(shard)):
            if self._of_documents:
                self._take_documents(position, shard, row)
            elif shard.is_kept[row]:
                self._parts[-1].num_tokens += shard.bounds[row + 1] - shard.bounds[row]
                self._parts[-1].num_text_tokens = self._parts[-1].num_tokens
            part = self._parts[-1]
            part.stop = (position, row + 1)
            if part.num_text_tokens >= self._shard_tokens:
                places = {domain: (*place,) for domain, place in sorted(self._walk.places.items())}
                self._parts.append(_OpenPart(part.stop, places))

    def _take_documents(self, position: int, shard: KeptShard, row: int) -> None:
        domain = shard.domains[row]
        pieces = self._walk.take(shard, row)
        owner = self._owners.pop(domain, None)
        for piece in pieces:
            if not piece.is_kept:
                continue
            if not piece.joins or owner is None:
                owner = self._parts[-1]
            elif owner is not self._parts[-1]:
                owner.rest.append((position, row))
            owner.num_tokens += piece.stop - piece.start + piece.is_end
            owner.num_text_tokens += piece.stop - piece.start
        if owner is not None and pieces and pieces[-1].is_kept and not pieces[-1].is_end:
            self._owners[domain] = owner

    def finish(self, stop: tuple[int, int]) -> tuple[PartPlan, ...]:
        last = self._parts[-1]
        if len(self._parts) > 1 and not last.num_text_tokens:
            # Nothing begins in it but ends of documents whose text was not kept; the part before takes it over.
            self._parts.pop()
            before = self._parts[-1]
            before.rest = []
            before.num_tokens += last.num_tokens
        self._parts[-1].stop = stop
        if not self._parts[-1].num_text_tokens:
            raise CorpusError("the selection holds no text: only ends of documents were kept; use a larger selection.ratio")
        return tuple(part.close() for part in self._parts)


class PartSequences:
    """The sequences of a part, with their shards read one after the other; the last ones stay in memory."""

    def __init__(
        self,
        storage: Storage,
        corpus: CorpusManifest,
        selection: SelectionManifest,
        plan: PartPlan,
        documents: ScoredDocuments | None = None,
    ) -> None:
        self._storage, self._corpus, self._selection = storage, corpus, selection
        self._plan, self._documents = plan, documents
        self._shards: dict[int, KeptShard] = {}

    @property
    def number(self) -> int:
        return self._plan.number

    @property
    def places(self) -> dict[str, Place]:
        return {domain: Place(*place) for domain, place in self._plan.places.items()}

    def list_rows(self) -> Iterator[tuple[KeptShard, int]]:
        """All sequences from start to stop, those that were not kept too."""
        (first, first_row), (last, last_row) = self._plan.start, self._plan.stop
        for position in range(first, min(last + (last_row > 0), len(self._selection.shards))):
            shard = self._read(position)
            stop = last_row if position == last else len(shard)
            for row in range(first_row if position == first else 0, stop):
                yield shard, row

    def list_rest(self) -> Iterator[tuple[KeptShard, int]]:
        for position, row in self._plan.rest:
            shard = self._read(position)
            if not shard.keeps(row, shard.document_ids[row][0]):
                raise CorpusError(
                    f"sequence {row} of candidate shard {position} was kept when the export was planned, and is not now"
                )
            yield shard, row

    def _read(self, position: int) -> KeptShard:
        if position not in self._shards:
            if len(self._shards) > 1:
                del self._shards[min(self._shards)]
            self._shards[position] = read_kept_shard(
                self._storage, self._corpus, self._selection, position, self._documents, self.number
            )
        return self._shards[position]
