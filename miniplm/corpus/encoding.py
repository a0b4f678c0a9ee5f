"""What is done with records in whichever process has time: parsed, given to a split, and tokenised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from miniplm.config.run import EncoderName, SplitsConfig
from miniplm.corpus.splits import assign_split
from miniplm.records.manifests import Split
from miniplm.sources.documents import Document, Rejection, make_excerpt
from miniplm.sources.parts import SourcePart
from miniplm.sources.reading import parse_part
from miniplm.tokenizers.encoders import TokenIds


@dataclass(frozen=True)
class EncodingRules:
    """How documents fall to splits, from which record on the documents of each split are to be packed, and what makes their ids."""

    seed: int
    splits: SplitsConfig
    needed_from: dict[Split, int]
    encoder: EncoderName = "tokenizers"


@dataclass(frozen=True, slots=True)
class EncodedDocuments:
    """Documents to be packed, in order: `token_ids` (num_tokens of all,) holds `num_tokens` of each, without EOS.

    `rejections` are those of the same records, in order. `num_documents` counts the documents that lie in closed shards too.
    """

    document_ids: list[int]
    splits: list[Split]
    domains: list[str]
    num_bytes: list[int]
    num_tokens: list[int]
    token_ids: TokenIds
    rejections: list[Rejection]
    num_documents: int


NO_DOCUMENTS = EncodedDocuments([], [], [], [], [], np.empty(0, dtype=np.uint32), [], 0)


def encode_parts(
    parts: Sequence[SourcePart], rules: EncodingRules, encode: Callable[[Sequence[str]], list[TokenIds]]
) -> EncodedDocuments:
    """The documents of the parts by `encode`, which gives token ids (num_tokens,) of each text; raises what parsing and `encode` raise."""
    documents: list[Document] = []
    splits: list[Split] = []
    rejections: list[Rejection] = []
    num_documents = 0
    for part in parts:
        for record in parse_part(part):
            if isinstance(record, Rejection):
                rejections.append(record)
                continue
            num_documents += 1
            split = assign_split(record.text.encode("utf-8"), rules.seed, rules.splits)
            if record.document_id >= rules.needed_from[split]:
                documents.append(record)
                splits.append(split)
    token_ids = encode([document.text for document in documents])
    kept = [index for index, ids in enumerate(token_ids) if len(ids)]
    if len(kept) < len(documents):
        rejections += [_reject(document) for document, ids in zip(documents, token_ids, strict=True) if not len(ids)]
        rejections.sort(key=lambda rejection: rejection.document_id)
    names: dict[str, str] = {}  # the same few, once each
    return EncodedDocuments(
        document_ids=[documents[index].document_id for index in kept],
        splits=[splits[index] for index in kept],
        domains=[names.setdefault(documents[index].domain, documents[index].domain) for index in kept],
        num_bytes=[documents[index].num_bytes for index in kept],
        num_tokens=[len(token_ids[index]) for index in kept],
        token_ids=_join([token_ids[index] for index in kept]),
        rejections=rejections,
        num_documents=num_documents,
    )


def _reject(document: Document) -> Rejection:
    message = "the tokenizer makes no token of the text"
    return Rejection(document.document_id, document.origin, "no_tokens", message, make_excerpt(document.text))


def _join(token_ids: list[TokenIds]) -> TokenIds:  # (num_tokens,) each
    if len(token_ids) == 1:
        return token_ids[0]  # a document of gigabytes is not copied
    return np.concatenate(token_ids) if token_ids else np.empty(0, dtype=np.uint32)
