"""Packing: worked cases with literal ids, an oracle in plain Python, and that nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniplm.corpus.packing import DomainPacker, PackedSequence, SentenceEnds
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer
from tests.miniplm.corpus_fixtures import EOS, WORDS, save_tokenizer, word_id

E = 0  # EOS
ONE, TWO, THREE, FOUR, DOT, NEWLINE = (word_id(word) for word in ("one", " two", " three", " four", ".", "\n"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CorpusTokenizer:
    return load_tokenizer(save_tokenizer(tmp_path_factory.mktemp("word"), "word"))


@pytest.fixture(scope="module")
def ends(tokenizer: CorpusTokenizer) -> SentenceEnds:
    return SentenceEnds(tokenizer)


def pack(ends: SentenceEnds, sequence_length: int, documents: list[list[int]]) -> list[PackedSequence]:
    packer = DomainPacker(ends, sequence_length, E)
    packed = []
    for document_id, token_ids in enumerate(documents):
        packed += list(packer.add_document(document_id, np.array(token_ids, dtype=np.uint32)))
    remainder = packer.remainder()
    return [*packed, remainder] if remainder else packed


def as_lists(packed: list[PackedSequence]) -> list[tuple[list[int], list[int]]]:
    return [(sequence.token_ids.tolist(), list(sequence.document_ids)) for sequence in packed]


def test_the_ids_of_the_word_tokenizer_are_the_ones_these_cases_are_written_in(tokenizer: CorpusTokenizer):
    (token_ids,) = tokenizer.encode_documents(["one two. I am the D.A\none"])
    assert token_ids.tolist() == [2, 3, 6, 8, 9, 10, 11, 6, 12, 7, 2]
    assert tokenizer.decode([2, 3, 6, 0]) == f"one two.{EOS}"


def test_a_window_is_cut_after_the_last_eos_and_the_rest_opens_the_next(ends: SentenceEnds):
    # Joined: 2 3 0 2 3 4 5 0, windows of 5.
    assert as_lists(pack(ends, 4, [[2, 3], [2, 3, 4, 5]])) == [([2, 3, 0], [0]), ([2, 3, 4, 5, 0], [1])]


def test_a_full_window_and_no_more_is_left_whole(ends: SentenceEnds):
    assert as_lists(pack(ends, 4, [[2, 3], [4]])) == [([2, 3, 0, 4, 0], [0, 1])]
    assert as_lists(pack(ends, 4, [[2, 3], [4, 5]])) == [([2, 3, 0], [0]), ([4, 5, 0], [1])]


def test_without_a_sentence_end_the_cut_is_at_the_full_window(ends: SentenceEnds):
    assert as_lists(pack(ends, 3, [[2, 3, 4, 5, 2, 3, 4, 5, 2]])) == [
        ([2, 3, 4, 5], [0]),
        ([2, 3, 4, 5], [0]),
        ([2, 0], [0]),
    ]


def test_a_newline_is_a_sentence_end_whatever_follows(ends: SentenceEnds):
    assert as_lists(pack(ends, 4, [[ONE, NEWLINE, ONE, TWO, THREE, FOUR]])) == [
        ([ONE, NEWLINE], [0]),
        ([ONE, TWO, THREE, FOUR, E], [0]),
    ]


def test_punctuation_is_a_sentence_end_only_before_a_space(ends: SentenceEnds):
    the, d, a = word_id(" the"), word_id(" D"), word_id("A")
    # "one two. I am the D.A" with a window of 9 that ends after "D.": the cut goes back to "two."
    document = [ONE, TWO, DOT, word_id(" I"), word_id(" am"), the, d, DOT, a, TWO, THREE]
    assert as_lists(pack(ends, 7, [document]))[0] == ([ONE, TWO, DOT], [0])
    # The same with a space after "D.": the window ends there.
    document[8] = word_id(" four")
    assert as_lists(pack(ends, 7, [document]))[0] == (document[:8], [0])


@pytest.mark.parametrize(
    ("token", "following", "is_end"),
    [
        (".", " two", True),
        (".", "one", False),
        (".", "\n", False),
        ("!", " two", True),
        ("?", " two", True),
        (";", " two", True),
        ("(.", " two", False),  # an opener without its closer
        (". ", "one", True),  # its own space, after the sign
        (")", " two", False),
        (" two", " three", False),
        ("\n", "one", True),
        (".", EOS, False),
    ],
)
def test_sentence_ends_of_each_kind(ends: SentenceEnds, token: str, following: str, is_end: bool):
    follower = E if following == EOS else word_id(following)
    token_ids = np.array([ONE, ONE, word_id(token), ONE, follower, ONE], dtype=np.uint32)
    # The token is the last of a window of 3 or has one more after it; only its follower decides.
    token_ids[3] = follower
    assert ends.find_cut(token_ids, 0, 3) == 3
    assert ends.find_cut(token_ids, 0, 4) == (3 if is_end and not follower_is_end(following) else 4)
    token_ids[1] = NEWLINE
    assert ends.find_cut(token_ids, 0, 3) == (3 if is_end else 2)


def follower_is_end(following: str) -> bool:
    return following in ("\n", EOS)


def test_the_first_token_alone_is_never_a_sequence(ends: SentenceEnds):
    assert as_lists(pack(ends, 2, [[NEWLINE, ONE, TWO, THREE]])) == [([NEWLINE, ONE, TWO], [0]), ([THREE, E], [0])]


def test_document_ids_are_those_that_give_a_token_the_eos_included(ends: SentenceEnds):
    # Joined: 2 3 4 0 | 5 0 2 0 | 3 0 with windows of 4; document 1 begins after the cut.
    assert as_lists(pack(ends, 3, [[2, 3, 4], [5], [2], [3]])) == [
        ([2, 3, 4, 0], [0]),
        ([5, 0, 2, 0], [1, 2]),
        ([3, 0], [3]),
    ]
    # The EOS alone falls into the next sequence: it still is document 0's.
    assert as_lists(pack(ends, 3, [[2, 3, 4, 5], [2, 3]])) == [([2, 3, 4, 5], [0]), ([0, 2, 3, 0], [0, 1])]


def test_one_eos_can_be_all_that_is_left(ends: SentenceEnds):
    assert as_lists(pack(ends, 3, [[2, 3, 4, 5]])) == [([2, 3, 4, 5], [0]), ([0], [0])]


def test_a_document_much_longer_than_a_window_is_packed_whole(ends: SentenceEnds):
    document = [2, 3, 4, 5, 2, 6, 3] * 3000
    packed = pack(ends, 8, [document])
    assert np.concatenate([sequence.token_ids for sequence in packed]).tolist() == [*document, 0]
    assert len(packed) > 2300
    assert all(list(sequence.document_ids) == [0] for sequence in packed)


def plain_pack(texts: list[str], sequence_length: int, documents: list[list[int]]) -> list[list[int]]:
    """The rule in plain words and lists, written apart from the library."""

    def is_end(token: int, following: int) -> bool:
        text = texts[token]
        if token == E or "\n" in text:
            return True
        signs = [index for index, character in enumerate(text) if character in ".!?;"]
        if not signs or any(text.count(opener) and not text.count(closer) for opener, closer in ("[]", "()", "{}", "<>")):
            return False
        return " " in text[signs[-1] + 1 :] or texts[following][:1] == " "

    buffer = [token for document in documents for token in [*document, E]]
    packed = []
    while len(buffer) > sequence_length + 1:
        cut = next((i for i in range(sequence_length, 0, -1) if is_end(buffer[i], buffer[i + 1])), sequence_length)
        packed.append(buffer[: cut + 1])
        buffer = buffer[cut + 1 :]
    return [*packed, buffer] if buffer else packed


@given(
    st.lists(st.lists(st.integers(2, 1 + len(WORDS)), min_size=1, max_size=40), min_size=1, max_size=20),
    st.integers(2, 12),
)
def test_packing_agrees_with_the_rule_in_plain_python(documents: list[list[int]], sequence_length: int):
    ends = oracle_ends()
    packed = pack(ends, sequence_length, documents)
    texts = [EOS, "[UNK]", *WORDS]
    assert [sequence.token_ids.tolist() for sequence in packed] == plain_pack(texts, sequence_length, documents)
    # The documents of each sequence, from where each token came from.
    owners = [document_id for document_id, document in enumerate(documents) for _ in range(len(document) + 1)]
    start = 0
    for sequence in packed:
        stop = start + len(sequence.token_ids)
        assert list(sequence.document_ids) == sorted(set(owners[start:stop]))
        start = stop
    assert start == len(owners)


_ORACLE: list[SentenceEnds] = []


def oracle_ends() -> SentenceEnds:
    """Made once: hypothesis takes no module fixture of its own."""
    if not _ORACLE:
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix="miniplm-test-"))
        _ORACLE.append(SentenceEnds(load_tokenizer(save_tokenizer(folder, "word"))))
    return _ORACLE[0]


def test_a_packer_goes_on_from_its_state(ends: SentenceEnds):
    rng = np.random.default_rng(0)
    documents = [rng.integers(2, 2 + len(WORDS), size=int(size)).astype(np.uint32) for size in rng.integers(1, 30, size=60)]
    whole = DomainPacker(ends, 9, E)
    expected = [sequence for index, document in enumerate(documents) for sequence in whole.add_document(index, document)]
    resumed = DomainPacker(ends, 9, E)
    found = []
    for index, document in enumerate(documents):
        found += list(resumed.add_document(index, document))
        resumed = DomainPacker(ends, 9, E, resumed.state())
    assert as_lists(found) == as_lists(expected)
    assert as_lists([resumed.remainder()]) == as_lists([whole.remainder()])


def test_the_state_before_a_document_makes_its_sequences_again(ends: SentenceEnds):
    packer = DomainPacker(ends, 4, E)
    list(packer.add_document(0, np.array([2, 3], dtype=np.uint32)))
    document = np.array([4, 5, 2, 3, 4, 5, 2, 3, 4], dtype=np.uint32)
    iterator = packer.add_document(1, document)
    first = next(iterator)
    before = packer.state_before()
    assert before.token_ids.tolist() == [2, 3, 0]
    again = DomainPacker(ends, 4, E, before)
    assert as_lists(list(again.add_document(1, document))) == as_lists([first, *iterator])
