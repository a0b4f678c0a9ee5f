"""Runs of 13 words of evaluation texts in candidates: against plain sets of tuples, in other spelling, at borders, after a kill."""

from __future__ import annotations

import random

import pytest

from miniplm import layout
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import load_corpus_tokenizer
from miniplm.errors import CorpusError
from miniplm.overlap.contamination import (
    find_contamination,
    provide_contamination,
    read_items,
    read_matches,
    resolve_contamination_id,
)
from miniplm.overlap.documents import read_documents as REAL
from miniplm.overlap.evaluation_texts import EvaluationItem, EvaluationSource, heldout_source
from miniplm.overlap.words import NgramIndex, cut_words, list_words
from miniplm.storage.root import Storage
from tests.miniplm.corpus_fixtures import decode_rows, make_config, read_sequences, write_jsonl

QUESTION = "Which of these animals would most likely be found at the bottom of a very deep lake in winter?"


def make_words(rng, num):
    return [f"w{rng.randrange(4000)}" for _ in range(num)]


def list_ngrams(words):
    return {tuple(words[start : start + 13]) for start in range(len(words) - 12)}


def make_source(name, *items):
    return EvaluationSource(
        name, f"digest of {items}", lambda: iter([EvaluationItem(f"document {n}", item) for n, item in enumerate(items)])
    )


def prepare(tmp_path, tokenizer, documents, **settings):
    storage = Storage(str(tmp_path / "data"))
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": text, "domain": "ab"[n % 2]} for n, text in enumerate(documents)])
    config = make_config(
        tokenizer, {"path": str(path), "domain": "domain"}, **{"sequence_length": 120, "sequences_per_shard": 10, **settings}
    )
    return storage, prepare_corpus(storage, config)


def read_all(storage, manifest):
    return [row for entry in manifest.shards for row in read_matches(storage, manifest, entry).to_pylist()]


def test_words_are_the_same_however_they_are_set():
    assert list_words("It's “The\n  END”, said_Ann—42!") == ["it", "s", "the", "end", "said", "ann", "42"]
    assert list_words("ﬁnal CAFÉ") == list_words("Final cafe\u0301") == ["final", "café"]
    assert list_words("我爱 NLP三月") == ["我", "爱", "nlp", "三", "月"]
    assert list_words("") == []
    assert cut_words("One, TWO three: four", 1, 3) == "two three"


def test_runs_that_are_found_are_those_of_plain_sets():
    rng = random.Random(0)
    texts = [make_words(rng, rng.randrange(5, 40)) for _ in range(30)]
    index = NgramIndex()
    assert [index.add(number, words) for number, words in enumerate(texts)] == [len(words) >= 13 for words in texts]
    index.finish()
    known = [list_ngrams(words) for words in texts]
    assert len(index) == len(set().union(*known))
    for _ in range(20):
        parts = [rng.choice(texts)[rng.randrange(6) :] if rng.random() < 0.6 else make_words(rng, 9) for _ in range(6)]
        words = [word for part in parts for word in part]
        starts = [start for start in range(len(words) - 12) if any(tuple(words[start : start + 13]) in one for one in known)]
        spans = index.find(words)
        assert [start for span in spans for start in range(span.start, span.stop - 12)] == starts
        assert all(tuple(words[span.start : span.start + 13]) in known[span.item] for span in spans)


def test_a_question_in_other_spelling_is_found_with_its_text(tmp_path, tokenizer):
    copy = QUESTION.upper().replace(" ", "\n ").replace("WINTER?", "winter")
    documents = ["alpha beta. " * 20, f"Some quiz.\n{copy} (A) a trout", "gamma delta; " * 30]
    storage, corpus = prepare(tmp_path, tokenizer, documents, sequence_length=400)
    sources = [
        make_source("task quiz", ("Too short to be found.",), ("the answer", QUESTION)),
    ]
    manifest = provide_contamination(storage, corpus, sources)
    (row,) = read_all(storage, manifest)
    assert (row["document_id"], row["item"], row["num_words"]) == (1, 1, 19)
    assert list_words(row["text"]) == list_words(QUESTION)
    told = {source.name: (source.num_items, source.num_short) for source in manifest.sources}
    assert told == {"task quiz": (2, 1)}
    assert read_items(storage, manifest).to_pylist()[1] == {
        "item": 1,
        "source": "task quiz",
        "place": "document 1",
        "text": QUESTION,
    }
    text = decode_rows(
        storage, corpus.corpus_id, [r for r in read_sequences(storage, "", corpus.shards) if r["sequence_id"] == row["sequence_id"]]
    )
    assert "TROUT" in text[0].upper()


@pytest.mark.parametrize(("sequences_per_shard", "sequence_length"), [(1000, 60), (3, 60)])
def test_matches_are_those_of_each_document_in_all_its_sequences(tmp_path, tokenizer, sequences_per_shard, sequence_length):
    rng = random.Random(1)
    items = [" ".join(make_words(rng, 30)) for _ in range(6)]
    documents = []
    for _ in range(40):
        words = make_words(rng, rng.randrange(4, 60))
        if rng.random() < 0.9:
            words[2:2] = rng.choice(items).split()[rng.randrange(12) :]
        documents.append(" ".join(words))
    storage, corpus = prepare(
        tmp_path, tokenizer, documents, sequences_per_shard=sequences_per_shard, sequence_length=sequence_length
    )
    manifest = provide_contamination(storage, corpus, [make_source("quiz", *[(item,) for item in items])])
    known = set().union(*[list_ngrams(list_words(item)) for item in items])
    rows = read_sequences(storage, corpus.corpus_id, corpus.split_shards("candidate"))
    words, owners = {}, {}  # of each document, and the sequence of each word
    for row, text in zip(rows, decode_rows(storage, corpus.corpus_id, rows), strict=True):
        for document, part in zip(row["document_ids"], text.split("<|end|>"), strict=False):
            found = list_words(part)
            words.setdefault(document, []).extend(found)
            owners.setdefault(document, []).extend([row["sequence_id"]] * len(found))
    expected = set()
    for document, listed in words.items():
        for start in range(len(listed) - 12):
            if tuple(listed[start : start + 13]) in known:
                expected |= {(owner, document) for owner in owners[document][start : start + 13]}
    got = {(row["sequence_id"], row["document_id"]) for row in read_all(storage, manifest)}
    assert got == expected
    assert len(expected) > len({document for _, document in expected}) > 5
    if len(manifest.shards) == 1:
        assert sum(entry.num_sequences for entry in manifest.shards) == len({sequence for sequence, _ in expected})
        return
    over_the_end = {document for sequence, document in expected if sequence % 3 == 2} & {
        document for sequence, document in expected if sequence % 3 == 0
    }
    assert over_the_end
    # A shard that is looked through anew, alone, gives the same.
    key = manifest.contamination_id
    storage.delete(layout.contamination_manifest(corpus.corpus_id, key))
    storage.delete(layout.contamination_shard_manifest(corpus.corpus_id, key, 5))
    again = provide_contamination(storage, corpus, [make_source("quiz", *[(item,) for item in items])])
    assert again.shards == manifest.shards


def test_heldout_documents_are_items_of_their_own(tmp_path, tokenizer):
    rng = random.Random(2)
    frame = " ".join(make_words(rng, 20))
    documents = [f"{' '.join(make_words(rng, 10))} {frame} {number}" for number in range(30)]
    storage, corpus = prepare(tmp_path, tokenizer, documents, splits={"reference": 0, "heldout": 0.3}, sequence_length=400)
    source = heldout_source("the held-out split", storage, corpus, "heldout", False)
    items = list(source.read())
    assert len(items) == sum(counts.num_documents for counts in corpus.domains["heldout"].values())
    assert all(item.texts[0] == documents[int(item.place.split()[1])] for item in items)
    manifest = provide_contamination(storage, corpus, [source])
    assert {row["document_id"] for row in read_all(storage, manifest)} | {int(item.place.split()[1]) for item in items} == set(
        range(30)
    )


def test_after_a_kill_only_what_is_missing_is_looked_through(tmp_path, tokenizer, monkeypatch):
    storage, corpus = prepare(tmp_path, tokenizer, [f"{QUESTION} {number}" for number in range(30)], sequences_per_shard=5)
    sources = [make_source("quiz", (QUESTION,))]
    first = provide_contamination(storage, corpus, sources)
    assert len(first.shards) > 2
    key = resolve_contamination_id(sources)
    assert find_contamination(storage, corpus, key) == first
    path = tmp_path / "data" / layout.contamination_shard(corpus.corpus_id, key, 1)
    path.write_bytes(b"")
    assert find_contamination(storage, corpus, key) is None
    with pytest.raises(CorpusError, match="delete it and run again"):
        read_matches(storage, first, first.shards[1])
    looked = []
    monkeypatch.setattr(
        "miniplm.overlap.contamination.read_documents",
        lambda storage, corpus, shard: looked.append(shard.shard_index) or REAL(storage, corpus, shard),
    )
    second = provide_contamination(storage, corpus, sources)
    assert looked == [1]
    assert second.shards == first.shards
    assert resolve_contamination_id([make_source("quiz", (f"{QUESTION} again",))]) != key


def test_the_tokenizer_of_the_corpus_reads_its_parts(tmp_path, tokenizer):
    storage, corpus = prepare(tmp_path, tokenizer, ["日本語の文章。" * 30])
    manifest = provide_contamination(storage, corpus, [make_source("quiz", ("前" + "日本語の文章。" * 3,))])
    assert load_corpus_tokenizer(storage, corpus.corpus_id).texts.is_exact
    assert {row["sequence_id"] for row in read_all(storage, manifest)} == set(range(corpus.split_counts("candidate").num_sequences))
