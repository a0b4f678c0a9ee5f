"""The texts that students are measured on, as contamination is looked for: items with a place, of a source whose content has a digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from miniplm.corpus.reader import load_corpus_tokenizer
from miniplm.overlap.documents import read_documents
from miniplm.records.manifests import CorpusManifest, Split
from miniplm.storage.root import Storage, digest_content
from miniplm.tokenizers.tokenizer import CorpusTokenizer


class EvaluationItem(NamedTuple):
    """A question or document: where it is found in its source, and its texts, each looked for by itself."""

    place: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationSource:
    """A task, or held-out documents. `digest` follows from all that decides the items, which are read when they are needed."""

    name: str
    digest: str
    read: Callable[[], Iterator[EvaluationItem]]


def heldout_source(name: str, storage: Storage, corpus: CorpusManifest, split: Split, trust_remote_code: bool) -> EvaluationSource:
    """The documents of a split of a corpus, decoded; one that lies in two shards is two items."""
    shards = corpus.split_shards(split)

    def read() -> Iterator[EvaluationItem]:
        tokenizer = load_corpus_tokenizer(storage, corpus.corpus_id, trust_remote_code, only_decodes=True)
        for shard in shards:
            documents = read_documents(storage, corpus, shard)
            for number, document_id in enumerate(documents.document_ids.tolist()):
                token_ids = documents.token_ids[documents.bounds[number] : documents.bounds[number + 1]]
                yield EvaluationItem(f"document {document_id}", (decode_document(tokenizer, token_ids),))

    return EvaluationSource(name, digest_content([corpus.tokenizer.digest, [shard.digest for shard in shards]]), read)


def decode_document(tokenizer: CorpusTokenizer, token_ids: np.ndarray[Any, Any]) -> str:
    """The text of token ids (num_tokens,) of one document, or a part of it, without the EOS at its end."""
    ids = token_ids.tolist()
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return tokenizer.decode(ids)
