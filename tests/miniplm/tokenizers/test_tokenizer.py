"""The corpus tokenizer: ids, separators, vocabulary digests, long texts in pieces."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from miniplm.errors import TokenizerError
from miniplm.tokenizers.text_pieces import cut_text
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer, vocabulary_digest
from tests.miniplm.corpus_fixtures import EOS, MAKERS, TRAINING_TEXT, make_word_tokenizer, save_tokenizer, word_id


@pytest.fixture(scope="module", params=sorted(MAKERS))
def any_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CorpusTokenizer:
    return load_tokenizer(save_tokenizer(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CorpusTokenizer:
    return load_tokenizer(save_tokenizer(tmp_path_factory.mktemp("bytes"), "bytes"))


def test_ids_are_those_of_the_backend_without_eos_or_bos(any_tokenizer: CorpusTokenizer):
    texts = [*TRAINING_TEXT, "x", ""]
    expected = [any_tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert [ids.tolist() for ids in any_tokenizer.encode_documents(texts)] == expected
    assert any_tokenizer.encode_documents([]) == []


def test_byte_level_texts_come_back_as_they_were(bytes_tokenizer: CorpusTokenizer):
    for text in [*TRAINING_TEXT, "  spaces  , and ' n 't  . ", "\x00\t\r\n", "🙂"]:
        (token_ids,) = bytes_tokenizer.encode_documents([text])
        assert bytes_tokenizer.decode(token_ids) == text


def test_the_text_of_a_special_token_is_ordinary_text(bytes_tokenizer: CorpusTokenizer):
    text = f"before{EOS}after"
    (token_ids,) = bytes_tokenizer.encode_documents([text])
    assert bytes_tokenizer.eos_token_id not in token_ids
    assert bytes_tokenizer.decode(token_ids) == text
    # A call of the transformers tokenizer in between changes nothing.
    assert bytes_tokenizer.eos_token_id in bytes_tokenizer.tokenizer(text)["input_ids"]
    assert np.array_equal(bytes_tokenizer.encode_documents([text])[0], token_ids)


def test_a_separator_that_the_models_own_vocabulary_has_as_a_word_is_told_apart(bytes_tokenizer: CorpusTokenizer, tmp_path: Path):
    """As XLM-R's and T5's `</s>`."""
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("a", -3.0)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(["</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path), "</s>")
    assert tokenizer.reads_separator_in_text
    assert tokenizer.eos_token_id in tokenizer.encode_documents(["a </s> a"])[0]
    assert not bytes_tokenizer.reads_separator_in_text


def test_truncation_and_padding_of_the_tokenizer_are_ignored(tmp_path: Path):
    backend = MAKERS["bytes"]()
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path))
    (token_ids,) = tokenizer.encode_documents(["a text of more than four tokens"])
    assert tokenizer.decode(token_ids) == "a text of more than four tokens"


def test_merges_are_not_left_out_by_chance(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    backend = MAKERS["bytes"]()
    text = "a text of more than four tokens " * 20
    expected = backend.encode(text).ids
    backend.model.dropout = 0.5
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(str(tmp_path / "own"))
    tokenizer = load_tokenizer(str(tmp_path / "own"))
    tokenizer.save(tmp_path / "copy")
    for each in (tokenizer, load_tokenizer(str(tmp_path / "copy"))):
        assert each.encode_documents([text])[0].tolist() == expected
    assert [record.getMessage()[:80] for record in caplog.records if "dropout 0.5" in record.getMessage()] == [
        f"tokenizer {tmp_path / 'own'} leaves out merges by chance (dropout 0.5"[:80]
    ]


def test_the_entry_says_what_the_vocabulary_is(tmp_path: Path):
    backend = make_word_tokenizer()
    tokenizer = load_tokenizer(save_tokenizer(tmp_path / "a", "word"))
    assert tokenizer.entry.vocab_size == max(backend.get_vocab().values()) + 1 == 21
    assert (tokenizer.entry.eos_token, tokenizer.entry.eos_token_id) == (EOS, 0)
    assert tokenizer.entry.digest == vocabulary_digest(tokenizer.tokenizer)
    # The same vocabulary has the same digest, whatever its folder; another token has another.
    assert load_tokenizer(save_tokenizer(tmp_path / "b", "word")).entry.digest == tokenizer.entry.digest
    backend.add_tokens(["more"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(str(tmp_path / "c"))
    larger = load_tokenizer(str(tmp_path / "c"))
    assert larger.entry.digest != tokenizer.entry.digest
    assert larger.entry.vocab_size == 22


def test_the_encoding_digest_tells_merges_apart_where_the_vocabulary_does_not(tmp_path: Path):
    first = load_tokenizer(save_tokenizer(tmp_path / "a", "bytes"))
    content = MAKERS["bytes"]().to_str()
    reordered = Tokenizer.from_str(content.replace('"add_prefix_space":false', '"add_prefix_space":true'))
    PreTrainedTokenizerFast(tokenizer_object=reordered, eos_token=EOS).save_pretrained(str(tmp_path / "b"))
    second = load_tokenizer(str(tmp_path / "b"))
    assert second.entry.digest == first.entry.digest
    assert second.encoding_digest != first.encoding_digest
    again = load_tokenizer(save_tokenizer(tmp_path / "c", "bytes"))
    again.encode_documents(["some text"])
    assert again.encoding_digest == first.encoding_digest


def test_a_named_separator_takes_the_place_of_the_tokenizers_own(tmp_path: Path):
    folder = save_tokenizer(tmp_path, "word")
    tokenizer = load_tokenizer(folder, eos_token="\n")
    assert tokenizer.eos_token_id == word_id("\n")
    assert tokenizer.tokenizer.eos_token == "\n"


def test_a_named_separator_that_was_not_marked_special_becomes_so(tmp_path: Path):
    backend = MAKERS["bytes"]()
    backend.add_tokens([AddedToken("<sep>", special=False)])
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path), eos_token="<sep>")
    (token_ids,) = tokenizer.encode_documents(["a<sep>b"])
    assert tokenizer.eos_token_id not in token_ids
    assert tokenizer.decode(token_ids) == "a<sep>b"
    assert tokenizer.entry.vocab_size == backend.get_vocab_size()


def test_a_saved_tokenizer_is_the_same_one(any_tokenizer: CorpusTokenizer, tmp_path: Path):
    any_tokenizer.save(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.entry == any_tokenizer.entry.model_copy(update={"name": str(tmp_path)})
    for one, other in zip(again.encode_documents(TRAINING_TEXT), any_tokenizer.encode_documents(TRAINING_TEXT), strict=True):
        assert np.array_equal(one, other)


def test_a_tokenizer_without_eos_says_what_to_name(tmp_path: Path):
    folder = save_tokenizer(tmp_path, "word", eos_token=None)
    with pytest.raises(TokenizerError, match=r"has no EOS token.*`corpus\.eos_token`"):
        load_tokenizer(folder)
    assert load_tokenizer(folder, eos_token=EOS).eos_token_id == 0


def test_a_separator_that_is_not_in_the_vocabulary_is_refused(tmp_path: Path):
    with pytest.raises(TokenizerError, match=r"'<nope>' is not in the vocabulary.*21 tokens"):
        load_tokenizer(save_tokenizer(tmp_path, "word"), eos_token="<nope>")


def test_a_missing_folder_a_file_and_a_damaged_folder_are_told_apart(tmp_path: Path):
    with pytest.raises(TokenizerError, match="there is no tokenizer folder"):
        load_tokenizer(str(tmp_path / "missing"))
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(TokenizerError, match="is a file"):
        load_tokenizer(str(file))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TokenizerError, match="holds no tokenizer that can be loaded"):
        load_tokenizer(str(empty))
    folder = Path(save_tokenizer(tmp_path / "cut", "word"))
    content = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(TokenizerError, match="holds no tokenizer that can be loaded"):
        load_tokenizer(str(folder))


def test_a_hub_that_is_not_reached_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TokenizerError, match=r"neither a folder .* nor could it be fetched from the hub"):
        load_tokenizer("no-such-owner/no-such-tokenizer")


def make_long_text(num_characters: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    words = " ".join(TRAINING_TEXT).split()
    parts = []
    length = 0
    while length < num_characters:
        part = rng.choice(words) + rng.choice([" ", " ", " ", "  ", "\n", "\n\n", ", ", " \n", "."])
        parts.append(part)
        length += len(part)
    return "".join(parts)


def test_a_text_in_pieces_has_the_ids_of_the_whole(any_tokenizer: CorpusTokenizer):
    text = make_long_text(60_000)
    encode = lambda part: any_tokenizer.encode_documents([part])[0].tolist()  # noqa: E731
    pieces = cut_text(text, encode, piece_characters=3000)
    assert len(pieces) > 10
    assert [token_id for piece in pieces for token_id in encode(piece)] == encode(text)


def test_long_documents_between_short_ones_keep_their_ids(bytes_tokenizer: CorpusTokenizer, monkeypatch: pytest.MonkeyPatch):
    texts = ["short", make_long_text(30_000), "", make_long_text(12_000, seed=1), "end"]
    expected = [ids.tolist() for ids in bytes_tokenizer.encode_documents(texts)]
    monkeypatch.setattr("miniplm.tokenizers.encoders.PIECE_CHARACTERS", 2000)
    monkeypatch.setattr("miniplm.tokenizers.encoders.cut_text", lambda text, encode: cut_text(text, encode, 2000))
    monkeypatch.setattr("miniplm.tokenizers.encoders._CALL_CHARACTERS", 5000)
    assert [ids.tolist() for ids in bytes_tokenizer.encode_documents(texts)] == expected


def test_a_word_without_end_is_cut_by_force_and_loses_no_character(bytes_tokenizer: CorpusTokenizer):
    text = "".join(random.Random(0).choices("abcdefgh", k=50_000))
    pieces = cut_text(text, lambda part: bytes_tokenizer.encode_documents([part])[0].tolist(), piece_characters=4000)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 6000
