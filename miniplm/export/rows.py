"""The rows of an export: documents as text or token ids, or the kept sequences as they are, or packed anew for another tokenizer."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.corpus.packing import DomainPacker, SentenceEnds
from miniplm.derived.fragments import TokenBytes
from miniplm.errors import TokenizerError
from miniplm.export.documents import Document, DocumentRestorer
from miniplm.export.parts import PartSequences
from miniplm.export.shards import SCORES
from miniplm.records.manifests import CorpusManifest
from miniplm.tokenizers.tokenizer import CorpusTokenizer

# Bytes of text that are encoded together.
_BATCH_BYTES = 4 << 20
_EXCERPT_CHARACTERS = 80


@dataclass(frozen=True)
class Row:
    """One row of a file. `facts` are the columns beside the text or the token ids; `num_source_tokens` what it is made of."""

    domain: str
    num_source_tokens: int
    facts: dict[str, Any]
    text: str = ""
    token_ids: NDArray[Any] | None = None


class RowMaker:
    """Makes the rows of a part. `counts` says what became of its documents."""

    def __init__(self, corpus: CorpusManifest, source: CorpusTokenizer) -> None:
        self._corpus, self._source = corpus, source
        self._bytes = TokenBytes(source)
        self._origins = _Origins(corpus)
        self.counts: Counter[str] = Counter(
            whole=0, parts=0, ends_without_text=0, eos_added=0, replaced_bytes=0, unknown_tokens=0, text_bytes=0
        )

    def list_texts(self, sequences: PartSequences) -> Iterator[Row]:
        """Documents as text."""
        for document in self._restore(sequences):
            yield Row(
                document.domain, document.num_source_tokens, self._describe(document, sequences.number), self._decode(document)
            )

    def list_token_ids(
        self, sequences: PartSequences, eos_token_id: int, bos_token_id: int | None, own: CorpusTokenizer | None
    ) -> Iterator[Row]:
        """Documents as token ids, the corpus's or those of another tokenizer, each with EOS after it and BOS, where one is named, before it."""
        before: list[int] = [] if bos_token_id is None else [bos_token_id]
        for document, token_ids in self._encode(sequences, own):
            self.counts["eos_added"] += not document.ends
            row = np.concatenate(
                [np.array(before, dtype=np.uint32), token_ids.astype(np.uint32), np.array([eos_token_id], np.uint32)]
            )
            yield Row(document.domain, document.num_source_tokens, self._describe(document, sequences.number), token_ids=row)

    def list_sequences(self, sequences: PartSequences) -> Iterator[Row]:
        """The kept sequences as they are."""
        for shard, row in sequences.list_rows():
            if shard.is_kept[row]:
                facts = {"sequence_id": shard.first_sequence_id + row} | {name: float(shard.scores[name][row]) for name in SCORES}
                token_ids = shard.row_tokens(row)
                yield Row(shard.domains[row], len(token_ids), facts, token_ids=token_ids)

    def list_packed(self, sequences: PartSequences, own: CorpusTokenizer | None) -> Iterator[Row]:
        """Documents packed anew as a corpus is, in the tokens of another tokenizer where one is given; what fills no sequence is a shorter one at the part's end."""
        tokenizer = self._source if own is None else own
        ends = SentenceEnds(tokenizer)
        packers: dict[str, DomainPacker] = {}
        num_source_tokens: Counter[str] = Counter()
        for document, token_ids in self._encode(sequences, own):
            domain = document.domain
            self.counts["eos_added"] += not document.ends
            if domain not in packers:
                packers[domain] = DomainPacker(ends, self._corpus.sequence_length, tokenizer.eos_token_id)
            num_source_tokens[domain] += document.num_source_tokens
            for packed in packers[domain].add_document(document.document_id, token_ids):
                yield Row(domain, num_source_tokens.pop(domain, 0), {}, token_ids=packed.token_ids)
        for domain in sorted(packers):
            if (rest := packers[domain].remainder()) is not None:
                yield Row(domain, num_source_tokens.pop(domain, 0), {}, token_ids=rest.token_ids)

    def _restore(self, sequences: PartSequences) -> Iterator[Document]:
        restorer = DocumentRestorer(sequences.places)
        for shard, row in sequences.list_rows():
            yield from self._count(restorer.take(shard, row))
        for shard, row in sequences.list_rest():
            yield from self._count(restorer.take_rest(shard, row))
        yield from self._count(restorer.finish())

    def _count(self, documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            if not len(document.token_ids):
                self.counts["ends_without_text"] += 1
                continue
            self.counts["whole" if document.is_whole else "parts"] += 1
            if self._bytes.unknown_id not in (None, self._corpus.tokenizer.eos_token_id):
                self.counts["unknown_tokens"] += int(np.count_nonzero(document.token_ids == self._bytes.unknown_id))
            yield document

    def _decode(self, document: Document) -> str:
        content = self._bytes.join(document.token_ids, starts_text=document.token_start == 0)
        text, num_replaced = self._bytes.decode(content)
        self.counts["replaced_bytes"] += num_replaced
        self.counts["text_bytes"] += len(content)
        return text

    def _encode(self, sequences: PartSequences, own: CorpusTokenizer | None) -> Iterator[tuple[Document, NDArray[Any]]]:
        """Documents with their token ids (num_tokens,), of another tokenizer where one is given."""
        if own is None:
            yield from ((document, document.token_ids) for document in self._restore(sequences))
            return
        batch: list[tuple[Document, str]] = []
        num_bytes = 0
        for document in self._restore(sequences):
            text = self._decode(document)
            batch.append((document, text))
            num_bytes += len(text)
            if num_bytes >= _BATCH_BYTES:
                yield from _encode_batch(batch, own)
                batch, num_bytes = [], 0
        yield from _encode_batch(batch, own)

    def _describe(self, document: Document, number: int) -> dict[str, Any]:
        source, record = self._origins.find(document.document_id)
        name = f"{self._corpus.corpus_id}-{document.document_id}"
        # Unique where rows are repeated too.
        again = f"-use-{number}" if number > 1 else ""
        return {
            "id": f"{name if document.is_whole else f'{name}-{document.token_start}'}{again}",
            "domain": document.domain,
            "document_id": document.document_id,
            "sequence_ids": list(document.sequence_ids),
            **{score: getattr(document, score) for score in SCORES},
            "is_whole": document.is_whole,
            "token_start": document.token_start,
            "token_end": document.token_end,
            "source": source,
            "record": record,
        }


def _encode_batch(batch: Sequence[tuple[Document, str]], own: CorpusTokenizer) -> Iterator[tuple[Document, NDArray[Any]]]:
    """Documents with the token ids (num_tokens,) of their texts. Raises `TokenizerError` where the tokenizer cannot hold a text."""
    unknown_id = None if own.texts is None else own.texts.unknown_id
    for (document, text), token_ids in zip(batch, own.encode_documents([text for _, text in batch]), strict=True):
        num_unknown = 0 if unknown_id in (None, own.eos_token_id) else int(np.count_nonzero(token_ids == unknown_id))
        if num_unknown or (text.strip() and not len(token_ids)):
            raise TokenizerError(
                f"tokenizer {own.entry.name!r} cannot hold the text of document {document.document_id} "
                f"({text[:_EXCERPT_CHARACTERS]!r}...): {f'{num_unknown} of its tokens are unknown to it' if num_unknown else 'it makes no token of it'}. "
                "Use a tokenizer that knows every byte (byte-level BPE, or SentencePiece with byte fallback), or the corpus's own"
            )
        yield document, token_ids


class _Origins:
    """Which record of which source file a document was."""

    def __init__(self, corpus: CorpusManifest) -> None:
        self._sources = sorted(
            (source for source in corpus.sources if source.num_records), key=lambda source: source.first_document_id
        )
        self._first_ids = [source.first_document_id for source in self._sources]

    def find(self, document_id: int) -> tuple[str | None, int | None]:
        """The file, and the number of its record from 1; None where the corpus does not tell."""
        position = bisect_right(self._first_ids, document_id) - 1
        if position >= 0:
            source = self._sources[position]
            if document_id < source.first_document_id + source.num_records:
                return source.path, document_id - source.first_document_id + 1
        return None, None
