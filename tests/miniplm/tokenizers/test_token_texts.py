"""Token ids back to text, byte for byte: added words, byte fallback, the space before a text, and what cannot come back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from miniplm.tokenizers.token_texts import TokenTexts, list_text_changes

EOS = "<eos>"
WORDS = [
    AddedToken("café", normalized=False),
    AddedToken("Größe", normalized=True),
    AddedToken("<name>", normalized=True),
    AddedToken(" sp", normalized=False),
    AddedToken("日本", normalized=False),
    AddedToken("Ünïon", normalized=False, single_word=True),
]
# One letter that stands for a byte in a byte-level vocabulary: as an added word it has the id of that byte.
LETTERS = [AddedToken("é", normalized=False), AddedToken("ß", normalized=False)]
PIECES = [
    *(token.content for token in WORDS),
    "é",
    "ß",
    "日本語",
    "顡",
    " ",
    "  ",
    "\n",
    "The",
    "a",
    "x.",
    "😀",
    EOS,
    "<0x41>",
    "caf",
    "ï",
    "\ufffd",
]
TEXTS = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=3)),
    max_size=7,
).map("".join)


def make_byte_level(add_prefix_space: bool = False) -> Tokenizer:
    vocabulary = {EOS: 0} | {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1)}
    merges = [("T", "h"), ("Th", "e"), ("Ġ", "Ġ"), ("Ã", "©"), ("ð", "Ł")]
    vocabulary |= {"".join(pair): len(vocabulary) + at for at, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def make_byte_fallback(normalizer: object = None, pre_tokenizer: object = None, strips: bool = True) -> Tokenizer:
    """As Llama's and Gemma's: `▁` for a space, `<0xE9>` for bytes of characters that the vocabulary has not."""
    vocabulary = {"<unk>": 0, EOS: 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    letters = ["▁", "a", "c", "f", "T", "h", "e", "x", ".", "\n", "語", "▁▁", "▁T", "▁▁▁"]
    vocabulary |= {letter: 258 + at for at, letter in enumerate(letters)}
    merges = [("▁", "▁"), ("▁", "T"), ("▁▁", "▁")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    tokenizer.add_special_tokens(["<unk>", EOS])
    # As Gemma has them: words by the look of tokenizer.json, runs of spaces for the model.
    tokenizer.add_tokens([AddedToken("▁▁", normalized=False), AddedToken("▁▁▁", normalized=False)])
    return tokenizer


def make_metaspace(scheme: str) -> Tokenizer:
    tokenizer = make_byte_fallback(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    return tokenizer


def add_spaces() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": make_byte_level,
    "byte-level with spaces": lambda: make_byte_level(add_prefix_space=True),
    "llama": lambda: make_byte_fallback(add_spaces()),
    "gemma": lambda: make_byte_fallback(normalizers.Replace(" ", "▁"), strips=False),
    "first": lambda: make_byte_fallback(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "metaspace": lambda: make_metaspace("first"),
    "metaspace never": lambda: make_metaspace("never"),
}
PREFIXED = {"byte-level with spaces", "first", "metaspace"}


@cache
def load(kind: str) -> tuple[Tokenizer, TokenTexts]:
    tokenizer = MAKERS[kind]()
    tokenizer.add_tokens(WORDS + LETTERS)
    tokenizer.encode_special_tokens = True
    return tokenizer, TokenTexts(tokenizer, tokenizer.token_to_id(EOS))


def list_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", sorted(MAKERS.keys() - {"byte-level with spaces"}))
@settings(max_examples=120, deadline=None)
@given(text=TEXTS)
def test_a_text_comes_back_byte_for_byte(kind: str, text: str):
    tokenizer, texts = load(kind)
    if kind in PREFIXED:
        # A space at the start cannot be told from the one that the encoder puts there.
        text = text.lstrip(" ")
    assert texts.is_exact
    assert texts.join(list_ids(tokenizer, text)) == text.encode()


@pytest.mark.parametrize("kind", ["byte-level", "llama", "gemma", "metaspace never"])
@settings(max_examples=60, deadline=None)
@given(documents=st.lists(TEXTS, min_size=1, max_size=3), data=st.data())
def test_parts_that_are_cut_anywhere_are_joined_to_the_same_bytes(kind: str, documents: list[str], data: st.DataObject):
    """Where a cut parts an added letter from the character whose byte it may be, what it is cannot be told: none is added here."""
    tokenizer = MAKERS[kind]()
    tokenizer.encode_special_tokens = True
    eos_id = tokenizer.token_to_id(EOS)
    texts = TokenTexts(tokenizer, eos_id)
    token_ids = [token_id for document in documents for token_id in (*list_ids(tokenizer, document), eos_id)]
    cut = data.draw(st.integers(0, len(token_ids)))
    is_start = cut == 0 or token_ids[cut - 1] == eos_id
    found = texts.join(token_ids[:cut]) + texts.join(token_ids[cut:], starts_text=is_start)
    assert found == "".join(document + EOS for document in documents).encode()


@pytest.mark.parametrize("kind", sorted(MAKERS.keys() - {"byte-level with spaces"}))
def test_words_one_after_the_other_come_back(kind: str):
    tokenizer, texts = load(kind)
    for text in ("cafécafé", "Größecafé", "café 日本 sp", "The café", "日本Ünïon", "ßcafé"):
        assert texts.join(list_ids(tokenizer, text)) == text.encode(), text


def test_a_letter_that_is_also_a_byte_is_told_by_its_neighbours():
    tokenizer, texts = load("byte-level")
    assert list_ids(tokenizer, "é")[0] in list_ids(tokenizer, "顡"), "the first byte of the character is the letter's token"
    for text in ("é", "顡", "é顡é", "顡é", "éé", "ßé", "x é."):
        assert texts.join(list_ids(tokenizer, text)) == text.encode()


def test_broken_characters_stay_bytes():
    tokenizer, texts = load("llama")
    euro = list_ids(tokenizer, "€")
    assert [texts.join(euro[1:2]), texts.join(euro[1:3]), texts.join(euro[3:])] == [b"\xe2", b"\xe2\x82", b"\xac"]
    assert texts.join(euro) == "€".encode()


def test_a_space_that_is_text_is_kept_within_a_document():
    tokenizer, texts = load("llama")
    token_ids = list_ids(tokenizer, "The The")
    assert texts.join(token_ids[-3:]) == b"The"
    assert texts.join(token_ids[-3:], starts_text=False) == b" The"


def test_special_tokens_are_written_as_they_are_and_texts_start_anew_after_eos():
    tokenizer, texts = load("first")
    eos_id = tokenizer.token_to_id(EOS)
    assert texts.join([*list_ids(tokenizer, "a"), eos_id, *list_ids(tokenizer, "x")]) == f"a{EOS}x".encode()


def test_a_special_token_that_is_normalised_takes_no_space_with_it():
    """As Llama 1 marks its special tokens: in documents they are ordinary text."""
    tokenizer = make_byte_fallback(add_spaces())
    tokenizer.add_special_tokens([AddedToken("x", normalized=True), AddedToken("<s>", normalized=True)])
    tokenizer.encode_special_tokens = True
    texts = TokenTexts(tokenizer, tokenizer.token_to_id(EOS))
    for text in ("ax", "x a x", "a<s>x"):
        assert texts.join(list_ids(tokenizer, text)) == text.encode()
    assert texts.join([tokenizer.token_to_id("a"), tokenizer.token_to_id("<s>")]) == b"a<s>"


def test_other_decoders_are_the_librarys_and_say_so():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, EOS: 1, "café": 2, "##s": 3, "x": 4}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    texts = TokenTexts(tokenizer, 1)
    assert not texts.is_exact
    assert texts.join([2, 3, 4]) == "cafés x".encode()
    assert texts.unknown_id == 0
    assert list_text_changes(tokenizer) == [
        "its decoder (WordPiece) does not write each token by itself",
        "it normalises text (BertNormalizer)",
        "its splitting rules (BertPreTokenizer) leave characters out",
    ]


def test_an_added_word_is_kept_from_a_decoder_that_is_not_known():
    tokenizer = make_byte_level()
    tokenizer.add_tokens([AddedToken("café", normalized=False)])
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip("~", 0, 1)])
    texts = TokenTexts(tokenizer, 0)
    assert not texts.is_exact
    assert texts.join(list_ids(tokenizer, "a café The")) == "a café The".encode()


@pytest.mark.parametrize(
    ("normalizer", "losses"),
    [
        (None, []),
        (add_spaces(), []),
        (normalizers.NFC(), ["it normalises text (NFC)"]),
        (normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()]), ["it normalises text (Strip, Lowercase)"]),
    ],
)
def test_what_a_normaliser_changes_is_said(normalizer: object, losses: list[str]):
    mark = "'▁' in a text is the mark of a space, and comes back as one"
    assert list_text_changes(make_byte_fallback(normalizer)) == [mark, *losses]


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_of_normalised_text_the_normalised_text_comes_back(text: str):
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer = make_byte_level()
    tokenizer.normalizer = normalizer
    tokenizer.encode_special_tokens = True
    assert TokenTexts(tokenizer, 0).join(list_ids(tokenizer, text)) == normalizer.normalize_str(text).encode()


def test_words_that_take_spaces_with_them_are_said():
    tokenizer = make_byte_level()
    tokenizer.add_tokens([AddedToken("[MASK]", lstrip=True)])
    assert list_text_changes(tokenizer) == ["added tokens such as '[MASK]' take the spaces beside them with them"]
    assert list_text_changes(make_byte_level(add_prefix_space=True)) == ["it puts a space before a text unless one is there"]


def test_what_is_put_before_a_text_twice_or_before_each_of_its_pieces_is_said():
    tokenizer = make_byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)])
    assert list_text_changes(tokenizer) == ["it puts a space before each piece that it splits a text into unless one is there"]
    tokenizer.normalizer = normalizers.Prepend(" ")
    assert list_text_changes(tokenizer) == ["it puts something before a text twice (Prepend, ByteLevel)"]


def test_an_added_word_that_is_the_models_name_for_another_text_is_said():
    tokenizer = make_byte_level()
    tokenizer.add_tokens([AddedToken("Ġ"), AddedToken("é")])
    assert list_text_changes(tokenizer) == ["'Ġ' in a text has the id of another text, and comes back as that"]
    assert TokenTexts(tokenizer, 0).join(list_ids(tokenizer, "x Ġ")) == b"x  "
