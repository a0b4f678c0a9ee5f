from pathlib import Path

import numpy as np
import pytest

from miniplm import layout
from miniplm.config.proxy import ProxyConfig
from miniplm.corpus.reader import read_shard
from miniplm.errors import ProxyError
from miniplm.proxy.labels import check_labels, draw_labels, find_labelled, find_places
from miniplm.records.manifests import CorpusManifest
from miniplm.scoring.shards import check_score_shards
from tests.miniplm.made_corpora import make_corpus
from tests.miniplm.proxy.made_labels import TEACHER, draw_sequences, score

CONFIG = ProxyConfig(share=0.3)


def make(storage, num=600, per_shard=100, corpus_id="made"):
    sequences = draw_sequences(num)
    return make_corpus(
        storage, {"candidate": [sequences[start : start + per_shard] for start in range(0, num, per_shard)]}, corpus_id
    )


def read_all(storage, corpus: CorpusManifest):
    return [row for shard in corpus.split_shards("candidate") for row in read_shard(storage, shard).to_pylist()]


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_share_of_the_ids_is_labelled_alike_everywhere(share):
    labelled = find_labelled(np.arange(200_000), share, 0)
    for part in np.split(labelled, 10):  # a standard error is 0.35 points at most
        assert part.mean() == pytest.approx(share, abs=0.015)
    assert (find_labelled(np.arange(200_000), share, 1) & labelled).mean() == pytest.approx(share**2, abs=0.005)


def test_more_is_labelled_by_a_larger_share_and_nothing_less():
    few, many = (find_labelled(np.arange(10_000), share, 0) for share in (0.1, 0.2))
    assert not (few & ~many).any()


def test_labels_are_those_sequences_with_ids_of_their_own(storage):
    corpus = make(storage)
    labels = draw_labels(storage, corpus, CONFIG)
    rows, candidates = read_all(storage, labels), read_all(storage, corpus)
    expected = [candidates[index] for index in np.flatnonzero(find_labelled(np.arange(600), 0.3, 0))]
    assert [row["sequence_id"] for row in rows] == list(range(len(expected)))
    for name in ("token_ids", "domain", "document_ids", "num_tokens"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    # As large as a candidate shard: 100 sequences and a rest.
    assert [shard.num_sequences >= 100 for shard in labels.split_shards("candidate")][:-1] == [True] * (len(labels.shards) - 1)
    assert labels.split_counts("candidate").num_sequences == len(expected)


def test_the_places_of_labels_lead_back_to_their_rows(storage):
    corpus = make(storage)
    rows = read_all(storage, draw_labels(storage, corpus, CONFIG))
    for shard in corpus.split_shards("candidate"):
        table, places = read_shard(storage, shard), find_places(corpus, shard, 0.3, 0)
        for offset, row in enumerate(places.rows.tolist()):
            assert rows[places.first_label_id + offset]["token_ids"] == table["token_ids"][row].as_py()


def test_a_draw_that_was_killed_goes_on_to_the_same_bytes(storage):
    corpus = make(storage)
    whole = draw_labels(storage, corpus, CONFIG)
    first = Path(storage.path(layout.corpus_shard(whole.corpus_id, "candidate", 0)))
    before = first.stat().st_ino
    storage.delete(layout.corpus_manifest(whole.corpus_id))
    storage.delete(layout.corpus_shard(whole.corpus_id, "candidate", 1))
    again = draw_labels(storage, corpus, CONFIG)
    assert again.shards == whole.shards
    assert first.stat().st_ino == before  # the same file: it was not made again


def test_a_corpus_that_grew_keeps_its_labels_and_their_scores(storage):
    corpus = make(storage, 400)
    labels = draw_labels(storage, corpus, CONFIG)
    score(storage, labels, TEACHER)
    whole = make(storage, 600, corpus_id="grown")
    own = [shard for shard in whole.shards if shard.first_sequence_id >= 400]
    grown = whole.model_copy(update={"parent": "made", "shards": (*corpus.shards, *own)})
    more = draw_labels(storage, grown, CONFIG)
    assert more.shards[: len(labels.shards)] == labels.shards
    assert {shard.corpus_id for shard in more.shards[len(labels.shards) :]} == {more.corpus_id}
    # What the teacher scored stays scored.
    states = [state.state for state in check_score_shards(storage, more, TEACHER.model_id)]
    assert states == ["done"] * len(labels.shards) + ["missing"] * (len(more.shards) - len(labels.shards))
    rows, candidates = read_all(storage, more), read_all(storage, whole)
    assert [row["token_ids"] for row in rows] == [
        candidates[index]["token_ids"] for index in np.flatnonzero(find_labelled(np.arange(600), 0.3, 0))
    ]


def test_a_new_part_without_a_label_adds_none(storage):
    corpus = make(storage, 400)
    labels = draw_labels(storage, corpus, CONFIG)
    first = next(number for number in range(400, 500) if not find_labelled(np.array([number, number + 1]), 0.3, 0).any())
    own = make_corpus(storage, {"candidate": [draw_sequences(2)]}, "tiny").shards[0].model_copy(update={"first_sequence_id": first})
    grown = corpus.model_copy(update={"corpus_id": "tiny", "parent": "made", "shards": (*corpus.shards, own)})
    own = own.model_copy(update={"shard_index": 4})
    assert draw_labels(storage, grown, CONFIG).shards == labels.shards


def test_too_few_labels_are_refused_with_a_share_that_gives_enough(storage):
    corpus = make(storage)
    with pytest.raises(
        ProxyError, match=r"share 0.05 of 600 candidate sequences gives \d\d labels.*at least 100.*share of 0.2 or more"
    ):
        draw_labels(storage, corpus, ProxyConfig())
    check_labels(corpus, ProxyConfig(share=0.2))
    with pytest.raises(ProxyError, match="Score all of so small a corpus"):
        check_labels(make(storage, 80, 40, "small"), ProxyConfig(share=0.9))
