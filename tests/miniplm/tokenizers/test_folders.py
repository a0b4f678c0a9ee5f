"""Tokenizers as files: the ids are those of tokenizer.json, whatever class its folder names, and damaged files are named."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer

from miniplm.errors import TokenizerError
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer, vocabulary_digest
from tests.miniplm.corpus_fixtures import EOS, MAKERS, TRAINING_TEXT, save_tokenizer

TEXTS = [
    *TRAINING_TEXT,
    "    1\n        22\n\n\nIn 2023, 650841823 people; x = [10, 200, 3000]\n",
    "|   12 |  3456 |\n\n\nTotal:   19",
    "I'M X1",
]
SPLITS: dict[str, Any] = {
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "threes": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "none": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
}
CLASSES = [
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "Qwen2Tokenizer",
    "LlamaTokenizer",
    "GPTNeoXTokenizer",
    "CodeLlamaTokenizer",
    "NoSuchTokenizer",
]


def make_backend(split: str = "digits") -> Tokenizer:
    backend = MAKERS["bytes"]()
    backend.pre_tokenizer = SPLITS[split]
    return backend


def write_folder(folder: Path, backend: Tokenizer, config: dict[str, Any] | None = None, **settings: Any) -> str:
    """A folder as repositories ship it: tokenizer.json beside settings that name a class."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS, **settings}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def raw_ids(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    backend.encode_special_tokens = True
    return [backend.encode(text, add_special_tokens=False).ids for text in texts]


def list_ids(tokenizer: CorpusTokenizer, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in tokenizer.encode_documents(texts)]


@pytest.mark.parametrize("model_type", [None, "llama", "qwen2", "qwen3", "gpt2", "mistral"])
@pytest.mark.parametrize("tokenizer_class", CLASSES)
def test_the_ids_are_those_of_tokenizer_json_whatever_class_is_named(tmp_path: Path, tokenizer_class: str, model_type: str | None):
    for split in SPLITS:
        backend = make_backend(split)
        config = None if model_type is None else {"model_type": model_type}
        name = write_folder(tmp_path / split, backend, config, tokenizer_class=tokenizer_class, unk_token=EOS, bos_token=EOS)
        tokenizer = load_tokenizer(name)
        assert list_ids(tokenizer, TEXTS) == raw_ids(backend, TEXTS)
        assert (tokenizer.entry.vocab_size, tokenizer.entry.digest) == (backend.get_vocab_size(), vocabulary_digest(backend))
        # The copy beside a corpus gives the same, by itself and by AutoTokenizer.
        tokenizer.save(tmp_path / f"{split}-copy")
        copy = load_tokenizer(str(tmp_path / f"{split}-copy"))
        assert copy.encoding_digest == tokenizer.encoding_digest
        assert raw_ids(Tokenizer.from_file(str(tmp_path / f"{split}-copy" / "tokenizer.json")), TEXTS) == raw_ids(backend, TEXTS)
        plain = AutoTokenizer.from_pretrained(str(tmp_path / f"{split}-copy"))
        assert plain(TEXTS, add_special_tokens=False)["input_ids"] == raw_ids(backend, TEXTS)


def test_a_disagreement_of_autotokenizer_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    name = write_folder(tmp_path, make_backend(), tokenizer_class="Qwen2Tokenizer", model_max_length=1234)
    with caplog.at_level(logging.WARNING, "miniplm"):
        load_tokenizer(name)
        load_tokenizer(name)
    (message,) = [record.message for record in caplog.records if record.name == "miniplm"]
    assert name in message
    assert "Qwen2Tokenizer" in message
    assert "pre_tokenizer" in message
    assert "tokens that the file has not (<|endoftext|>)" in message


@pytest.mark.parametrize(("in_config", "in_map", "num_said"), [(EOS, EOS, 0), (EOS, None, 0), (EOS, "<|other|>", 1)])
def test_two_files_that_name_different_separators_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, in_config: str, in_map: str | None, num_said: int
):
    backend = make_backend()
    backend.add_special_tokens(["<|other|>"])
    folder = write_folder(tmp_path, backend, tokenizer_class="PreTrainedTokenizerFast", eos_token=in_config)
    if in_map is not None:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": in_map}))
    with caplog.at_level(logging.WARNING, "miniplm"):
        taken = [load_tokenizer(folder).entry.eos_token for _ in range(2)]
    assert taken == [in_map or in_config] * 2
    assert caplog.text.count("has two EOS tokens") == num_said


def test_a_class_that_agrees_is_not_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    backend = MAKERS["bytes"]()
    GPT2Tokenizer(vocab=backend.get_vocab(), merges=[], eos_token=EOS, bos_token=EOS, unk_token=EOS).save_pretrained(
        str(tmp_path / "gpt2")
    )
    with caplog.at_level(logging.WARNING, "miniplm"):
        load_tokenizer(str(tmp_path / "gpt2"))
        load_tokenizer(save_tokenizer(tmp_path / "plain", "metaspace"))
    assert not [record for record in caplog.records if record.name == "miniplm"]


def test_tokens_that_a_class_or_settings_add_are_no_part_of_the_vocabulary(tmp_path: Path):
    backend = make_backend()
    expected = vocabulary_digest(backend)
    for number, settings in enumerate(
        ({"tokenizer_class": "Qwen2Tokenizer"}, {"pad_token": "[PAD]"}, {"extra_special_tokens": ["<a>", "<b>"]})
    ):
        tokenizer = load_tokenizer(write_folder(tmp_path / str(number), backend, **settings))
        assert (tokenizer.entry.digest, tokenizer.entry.vocab_size) == (expected, backend.get_vocab_size())


@pytest.mark.parametrize("how", ["name", "special_tokens_map", "added_tokens_decoder"])
def test_a_separator_that_only_the_settings_know_has_the_id_that_they_give_it(tmp_path: Path, how: str):
    backend = make_backend()
    size = backend.get_vocab_size()
    settings: dict[str, Any] = {"eos_token": "<stop>"}
    if how == "added_tokens_decoder":
        settings["added_tokens_decoder"] = {
            str(size + at): {
                "content": token,
                "special": True,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            }
            for at, token in enumerate(("<start>", "<stop>"))
        }
    if how == "special_tokens_map":
        settings = {"eos_token": None}
        tmp_path.mkdir(exist_ok=True)
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<stop>"}))
    tokenizer = load_tokenizer(write_folder(tmp_path, backend, **settings))
    expected = size + (how == "added_tokens_decoder")
    assert (tokenizer.eos_token_id, tokenizer.entry.vocab_size) == (expected, expected + 1)
    assert AutoTokenizer.from_pretrained(str(tmp_path)).eos_token_id == expected
    assert list_ids(tokenizer, ["a<stop>b", *TEXTS]) == raw_ids(backend, ["a<stop>b", *TEXTS])
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(str(tmp_path / "copy")).entry.digest == tokenizer.entry.digest


def test_named_tokens_do_not_change_how_words_are_found(tmp_path: Path):
    backend = MAKERS["metaspace"]()
    backend.add_tokens([AddedToken("[PAD]", normalized=True), AddedToken("one", normalized=True)])
    texts = ["a [PAD] b", "a[PAD]b", "one one", " one"]
    tokenizer = load_tokenizer(write_folder(tmp_path, backend, pad_token="[PAD]", unk_token="<unk>"))
    assert list_ids(tokenizer, texts) == raw_ids(backend, texts)
    tokenizer.save(tmp_path / "copy")
    assert AutoTokenizer.from_pretrained(str(tmp_path / "copy"))(texts, add_special_tokens=False)["input_ids"] == raw_ids(
        backend, texts
    )


def test_folders_without_tokenizer_json_are_read_by_transformers(tmp_path: Path):
    pairs = [("a", "b"), ("ab", "Ġ")]
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"ab": 256, "abĠ": 257, "<|endoftext|>": 258}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in pairs))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_tokenizer(str(tmp_path))
    expected = AutoTokenizer.from_pretrained(str(tmp_path))(TEXTS)["input_ids"]
    assert list_ids(tokenizer, TEXTS) == expected
    assert tokenizer.eos_token_id == 258
    assert tokenizer.decode(tokenizer.encode_documents(["ab ab"])[0]) == "ab ab"
    tokenizer.save(tmp_path / "copy")
    assert list_ids(load_tokenizer(str(tmp_path / "copy")), TEXTS) == expected


def test_code_that_comes_with_a_folder_is_not_needed_where_there_is_a_tokenizer_json(tmp_path: Path):
    (tmp_path / "own.py").write_text("raise SystemExit('this must not run')\n")
    auto_map = {"AutoTokenizer": ["own.Own", None]}
    backend = make_backend()
    tokenizer = load_tokenizer(write_folder(tmp_path, backend, tokenizer_class="Own", auto_map=auto_map))
    assert list_ids(tokenizer, TEXTS) == raw_ids(backend, TEXTS)


NOT_READ = r"{folder}.*(holds no tokenizer that can be loaded|is not valid JSON|JSON object is due|is no text|cannot be read).*copy"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"version": "2.0", "model": {"type": "Future"}}'),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'),
        ("tokenizer.json", b"\xff\xfe\x00"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", '{"eos_token": 5}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}, "eos_token": "<|end|>"}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1], "eos_token": "<|end|>"}'),
        ("special_tokens_map.json", "7"),
        ("added_tokens.json", b"\xff"),
    ],
)
def test_damaged_files_are_named_with_what_to_do(tmp_path: Path, file: str, content: str | bytes):
    folder = Path(write_folder(tmp_path, make_backend()))
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=NOT_READ.format(folder=folder)):
        load_tokenizer(str(folder))


def test_a_pointer_of_git_lfs_is_told_from_a_damaged_file(tmp_path: Path):
    folder = write_folder(tmp_path, make_backend())
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9085657\n")
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json is a pointer of git-lfs and not the file itself; run `git lfs pull`"
    ):
        load_tokenizer(folder)


def test_ids_that_the_library_does_not_take_from_the_file_are_refused(tmp_path: Path):
    folder = Path(write_folder(tmp_path, make_backend()))
    content = json.loads((folder / "tokenizer.json").read_text())
    shared = json.loads(json.dumps(content))
    content["added_tokens"][-1]["id"] = 70_000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"other ids than the tokenizers library takes for them: '.*' \(70000, not \d+\)"):
        load_tokenizer(str(folder))
    vocabulary = shared["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first] = vocabulary[second]
    (folder / "tokenizer.json").write_text(json.dumps(shared))
    with pytest.raises(TokenizerError, match="gives several tokens one id"):
        load_tokenizer(str(folder))


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}))
    with pytest.raises(TokenizerError, match=r"none of the files of a LlamaTokenizer \(tokenizer\.json, tokenizer\.model\)"):
        load_tokenizer(str(tmp_path))


def test_a_panic_of_the_rust_library_is_an_error_like_any_other(tmp_path: Path):
    folder = Path(write_folder(tmp_path, make_backend()))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read \(PanicException.*copy the tokenizer's files again"):
        load_tokenizer(str(folder))


def test_a_text_that_cannot_be_encoded_is_an_error_of_the_tokenizer(tmp_path: Path):
    backend = Tokenizer(models.WordLevel({EOS: 0, "a": 1}, unk_token="[UNK]"))
    name = write_folder(tmp_path, backend)
    with pytest.raises(TokenizerError, match=r"cannot encode the text 'b'\.\.\. .*UNK"):
        load_tokenizer(name).encode_documents(["a", "a", "b", "a"])


def test_lossy_normalisers_stay_as_the_file_says(tmp_path: Path):
    backend = make_backend("none")
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer = load_tokenizer(write_folder(tmp_path, backend, {"model_type": "gpt2"}, tokenizer_class="GPT2Tokenizer"))
    assert list_ids(tokenizer, TEXTS) == raw_ids(backend, TEXTS)
    assert tokenizer.list_text_changes() == ["it normalises text (NFKC, Lowercase)"]


def test_a_copy_needs_nothing_of_the_folder_it_was_made_of(tmp_path: Path):
    name = write_folder(
        tmp_path / "a", make_backend(), tokenizer_class="LlamaTokenizer", chat_template="{{ messages }}", model_max_length=77
    )
    tokenizer = load_tokenizer(name)
    shutil.rmtree(name)
    tokenizer.save(tmp_path / "b")
    plain = AutoTokenizer.from_pretrained(str(tmp_path / "b"))
    assert (plain.eos_token, plain.chat_template, plain.model_max_length) == (EOS, "{{ messages }}", 77)
    assert "tokenizer_class" in json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())


def test_word_level_vocabularies_keep_their_unknowns(tmp_path: Path):
    backend = Tokenizer(models.WordLevel({EOS: 0, "[UNK]": 1, "a": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    tokenizer = load_tokenizer(write_folder(tmp_path, backend, {"model_type": "llama"}))
    assert list_ids(tokenizer, ["a b a"]) == [[2, 1, 2]]
    assert tokenizer.list_text_changes() == ["its splitting rules (WhitespaceSplit) leave characters out"]
