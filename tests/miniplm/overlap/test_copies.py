"""Copies among candidates, against all pairs of plain sets; documents that lie in several sequences and shards."""

from __future__ import annotations

import numpy as np
import pytest

from miniplm import layout
from miniplm.errors import CorpusError
from miniplm.overlap.copies import find_copies, provide_copies, read_copies
from miniplm.overlap.documents import read_documents
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import make_corpus

EOS = 0


def pack(documents, capacity):
    """Documents of one domain, each followed by EOS, in sequences of `capacity` tokens cut anywhere; and the documents of each."""
    flat = [(token, number) for number, document in enumerate(documents) for token in [*document, EOS]]
    rows = [flat[start : start + capacity] for start in range(0, len(flat), capacity)]
    return [[token for token, _ in row] for row in rows], {
        number: list(dict.fromkeys(document for _, document in row)) for number, row in enumerate(rows)
    }


def make_packed(storage, documents, capacity=50, rows_a_shard=3, **options):
    rows, document_ids = pack(documents, capacity)
    shards = [rows[start : start + rows_a_shard] for start in range(0, len(rows), rows_a_shard)]
    return make_corpus(storage, {"candidate": shards}, document_ids=document_ids, domains=["a"], **options)


def draw_documents(seed, num=14):
    """Documents, some of them copies of others: exact ones, such with a few tokens changed, and such of which half is other text."""
    rng = np.random.default_rng(seed)
    documents = [rng.integers(1, 90, rng.integers(3, 180)).tolist() for _ in range(num)]
    for number in rng.choice(num, 9):
        kind = rng.integers(3)
        copy = list(documents[number])
        if kind == 1 and len(copy) > 150:
            copy[75] = 91
        if kind == 2:
            copy[: len(copy) // 2] = rng.integers(1, 90, len(copy) // 2).tolist()
        documents.insert(rng.integers(len(documents)), copy)
    return documents


def shingle(document):
    tokens = [*document, EOS]
    return {tuple(tokens[i : i + 5]) for i in range(max(1, len(tokens) - 4))}


def list_groups(documents):
    """Components of all pairs with a Jaccard similarity of 0.8 or more."""
    shingles = [shingle(document) for document in documents]
    group = list(range(len(documents)))
    for left in range(len(documents)):
        for right in range(left):
            if len(shingles[left] & shingles[right]) / len(shingles[left] | shingles[right]) >= 0.8:
                old, new = max(group[left], group[right]), min(group[left], group[right])
                group = [new if one == old else one for one in group]
    return {number: one for number, one in enumerate(group) if group.count(one) > 1}


@pytest.mark.parametrize(("seed", "rows_a_shard"), [(0, 100), (1, 3), (2, 1), (3, 2)])
def test_groups_are_those_of_all_pairs_however_shards_lie(tmp_path, seed, rows_a_shard):
    documents = draw_documents(seed)
    storage = Storage(str(tmp_path))
    corpus = make_packed(storage, documents, rows_a_shard=rows_a_shard)
    manifest = provide_copies(storage, corpus)
    rows = read_copies(storage, manifest).to_pandas()
    expected = list_groups(documents)
    assert dict(zip(rows.document_id, rows.group_id, strict=True)) == expected
    exact = {number for number in expected if documents.count(documents[number]) > 1}
    texts = dict(zip(rows.document_id, rows.text_id, strict=True))
    assert texts == {number: documents.index(documents[number]) for number in expected}
    assert (manifest.num_exact, manifest.num_near) == (len(exact), len(expected) - len(exact))
    assert (manifest.num_groups, manifest.num_documents) == (len(set(expected.values())), len(documents))
    assert manifest.num_tokens == sum(len(document) + 1 for document in documents)
    totals = rows.groupby("document_id").num_tokens.sum()
    assert totals.to_dict() == {number: len(documents[number]) + 1 for number in expected}
    assert rows.sequence_id.is_monotonic_increasing


def test_parts_are_documents_again_in_domains_that_alternate(tmp_path):
    storage = Storage(str(tmp_path))
    sequences = [[1, 2, EOS, 3], [4, EOS], [5, EOS, 6, EOS], [7, 8, EOS]]
    document_ids = {0: [10, 11], 1: [20], 2: [11, 12], 3: [21]}
    corpus = make_corpus(storage, {"candidate": [sequences]}, document_ids=document_ids)
    documents = read_documents(storage, corpus, corpus.shards[0])
    pieces = np.split(documents.token_ids, documents.bounds[1:-1])
    assert dict(zip(documents.document_ids.tolist(), [piece.tolist() for piece in pieces], strict=True)) == {
        10: [1, 2, EOS],
        11: [3, 5, EOS],
        12: [6, EOS],
        20: [4, EOS],
        21: [7, 8, EOS],
    }
    assert documents.is_open.tolist() == [True, False, True, True, True]
    assert documents.part_sequences.tolist() == [0, 0, 2, 2, 1, 3]
    assert documents.part_documents.tolist() == [0, 1, 1, 2, 3, 4]


def test_separators_within_a_text_leave_it_whole(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_corpus(storage, {"candidate": [[[1, EOS, 2, EOS], [3, EOS, 4, EOS, 5]]]}, domains=["a"], document_ids={1: [1, 2]})
    documents = read_documents(storage, corpus, corpus.shards[0])
    assert documents.document_ids.tolist() == [0, 1, 2]
    assert documents.part_tokens.tolist() == [4, 2, 3]


def test_a_thousand_copies_of_one_frame_cost_no_square_of_pairs(tmp_path):
    rng = np.random.default_rng(0)
    frame = rng.integers(1, 90, 60).tolist()
    documents = [[*frame, int(number) // 90 + 1, int(number) % 90 + 1] for number in range(600)]
    storage = Storage(str(tmp_path))
    manifest = provide_copies(storage, make_packed(storage, documents, rows_a_shard=1000))
    assert (manifest.num_groups, manifest.num_near) == (1, 600)
    assert manifest.num_crowded > 500


def test_what_is_there_is_found_and_what_is_damaged_is_made_again(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_packed(storage, draw_documents(4))
    first = provide_copies(storage, corpus)
    assert find_copies(storage, corpus) == first
    path = tmp_path / layout.corpus_copies("made")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(CorpusError, match="delete it and run again"):
        read_copies(storage, first)
    assert find_copies(storage, corpus) is None
    # As after a kill between shards: one fingerprint is not there.
    (tmp_path / layout.fingerprint_manifest("made", 1)).unlink()
    assert provide_copies(storage, corpus).digest == first.digest
    assert path.read_bytes() == content


def test_a_damaged_shard_is_named(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_packed(storage, draw_documents(5))
    (tmp_path / layout.corpus_shard("made", "candidate", 0)).write_bytes(b"")
    with pytest.raises(CorpusError, match="shard-00000 of the candidate split of corpus made is damaged"):
        provide_copies(storage, corpus)
