"""Ids by remembered words are the library's, text for text, under each splitting rule whose words are known."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from miniplm.tokenizers import encoders
from miniplm.tokenizers.encoders import LibraryEncoder, WordEncoder, make_encoder
from miniplm.tokenizers.splitting_rules import find_words_pattern
from tests.miniplm.corpus_fixtures import TRAINING_TEXT, make_metaspace_tokenizer, make_word_tokenizer

QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
# What rules treat apart, beside characters that only some libraries call letters, numbers or blanks, and marks that join what is before.
SIGNS = [*" \t\n\r'.(<=#_-/\"5aeéSſ日²½٣٠\u0301\u0338\u0345\u00a0\u2028\u200b\u0085\x1c\x0b\x00🙂\u1e9e\uac00\u11a8"]
PARTS = [*SIGNS, "  ", "\n\n", "'s", "'LL", "'Ve", "word", "the", "123", "<|end|>", "(foo)", "\r\n", " \n ", "e\u0301"]


def byte_level(uses_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=uses_regex)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(False)])


RULES = {
    "gpt2": lambda: byte_level(True),
    "digits": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
    "qwen2": lambda: split(QWEN2),
    "llama3": lambda: split(LLAMA3),
}


def train(rules: str, **settings: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**settings))
    tokenizer.pre_tokenizer = RULES[rules]()
    if rules == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    rng = random.Random(0)
    tokenizer.train_from_iterator([*TRAINING_TEXT, *("".join(rng.choices(PARTS, k=400)) for _ in range(5))], trainer)
    return tokenizer


@pytest.fixture(scope="module", params=list(RULES))
def backend(request: pytest.FixtureRequest) -> Tokenizer:
    return train(request.param)


def list_ids(encode: Any, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in encode(texts)]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(PARTS) | st.characters(codec="utf-8"), max_size=30).map("".join), max_size=4))
@example(["don't 'sé  'S\u0301", " \u00a0x\n\n  5", "a\n\n\u0301", "x 'ſ", "=\u0338 <\u0338", "5\u20e3 \t5\t(\t(é", ""])
def test_ids_by_words_are_those_of_the_library(backend: Tokenizer, texts: list[str]):
    pattern = find_words_pattern(backend)
    assert pattern is not None
    assert ["".join(pattern.findall(text)) for text in texts] == texts
    assert list_ids(WordEncoder(backend, pattern), texts) == list_ids(LibraryEncoder(backend), texts)


def test_every_order_of_few_kinds_of_characters(backend: Tokenizer):
    """One of each kind that the rules tell apart: what is undecided next to one kind may be decided next to another. Up to five were tried once."""
    kinds = " \t\n\r'sSa(5é½ſ\u0301\u00a0"
    texts = ["".join(chosen) for length in range(1, 4) for chosen in product(kinds, repeat=length)]
    found = make_encoder(backend)(texts)
    for text, ids, encoding in zip(texts, found, backend.encode_batch_fast(texts, add_special_tokens=False), strict=True):
        assert ids.tolist() == encoding.ids, repr(text)


def test_what_is_remembered_is_bounded_and_changes_nothing(backend: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoders, "_MOST_WORDS", 40)
    monkeypatch.setattr(encoders, "_LONGEST_WORD", 12)
    encode = make_encoder(backend)
    assert isinstance(encode, WordEncoder)
    rng = random.Random(1)
    for _ in range(30):
        text = "".join(rng.choices(PARTS, k=60)) + "é" * 50
        assert list_ids(encode, [text]) == list_ids(LibraryEncoder(backend), [text])
        assert len(encode._ids) <= 40
        assert max(map(len, encode._ids)) <= 12


@pytest.mark.parametrize("blanks", [" " * 200_000 + "é", "\n" * 200_000 + "é", "'s" * 100_000 + "é", "é " * 100_000])
def test_no_text_makes_the_search_for_words_slow(blanks: str):
    """A cost that grew with the square would take minutes."""
    pattern = find_words_pattern(train("qwen2"))
    assert pattern is not None
    assert "".join(pattern.findall(blanks)) == blanks


def test_rules_that_look_across_words_are_left_to_the_library():
    plain, lower, chance, prefix, other = (train("gpt2", **({"dropout": 0.1} if i == 2 else {})) for i in range(5))
    plain.add_tokens([AddedToken("a word")])
    lower.normalizer = normalizers.Lowercase()
    prefix.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    other.pre_tokenizer = split(QWEN2 + "|x")
    unknown = [plain, lower, chance, prefix, other, make_word_tokenizer(), make_metaspace_tokenizer()]
    assert [find_words_pattern(tokenizer) for tokenizer in unknown] == [None] * len(unknown)
    assert all(isinstance(make_encoder(tokenizer), LibraryEncoder) for tokenizer in unknown)
