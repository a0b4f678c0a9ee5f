"""A student's folder gives back the ids it was trained on, whatever the model's family."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer
from miniplm.training import tokenizer_files
from miniplm.training.tokenizer_files import make_tokenizer_files

TEXTS = ["I'M  here\n\n\n  x1234", "café 1 22 333", " leading and trailing ", "<pad> and <s> are text"]
CONFIGS = [Qwen2Config, Qwen3Config, GPT2Config, LlamaConfig, GemmaConfig, MambaConfig, GPTNeoXConfig, MistralConfig]


def make_bytes_backend() -> Tokenizer:
    """Byte-level BPE that joins runs of line ends, which Qwen2's splitting rules keep from letters but not from each other."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0} | {character: index for index, character in enumerate(alphabet, start=1)}
    for merged in ("'M", "ĊĠ", "x1"):
        vocabulary[merged] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, [("'", "M"), ("Ċ", "Ġ"), ("x", "1")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def make_digits_backend() -> Tokenizer:
    backend = make_bytes_backend()
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.add_tokens([AddedToken("café", normalized=False), AddedToken("<pad>", normalized=True)])
    return backend


def make_llama_backend() -> Tokenizer:
    """As Llama 2's: a space before each text, bytes for what is not known, and `<s>` put before each text."""
    vocabulary = {"<unk>": 0, "<s>": 1, "<eos>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in ("▁", "x", "1", "▁x", "h", "e", "r"):
        vocabulary[token] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "x")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "<s>", "<eos>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return backend


BACKENDS = {"bytes": make_bytes_backend, "digits": make_digits_backend, "llama": make_llama_backend}


def make_tokenizer(folder: Path, kind: str = "bytes") -> CorpusTokenizer:
    names = {"bytes": {}, "digits": {"pad_token": "<pad>"}, "llama": {"bos_token": "<s>", "unk_token": "<unk>"}}[kind]
    PreTrainedTokenizerFast(tokenizer_object=BACKENDS[kind](), eos_token="<eos>", **names).save_pretrained(folder)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("kind", sorted(BACKENDS))
@pytest.mark.parametrize("config", [make() for make in CONFIGS], ids=[make.model_type for make in CONFIGS])
def test_auto_tokenizer_gives_the_ids_that_the_corpus_has(tmp_path: Path, config: object, kind: str) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", kind)
    folder = tmp_path / "student"
    config.save_pretrained(folder)
    for name, content in make_tokenizer_files(tokenizer, config).items():
        (folder / name).write_bytes(content)
    texts = [text for text in TEXTS if kind == "bytes" or "<" not in text] if kind != "digits" else TEXTS
    expected = [ids.tolist() for ids in tokenizer.encode_documents(texts)]
    for settings in ({}, {"trust_remote_code": True}):
        read = AutoTokenizer.from_pretrained(folder, **settings)
        assert [read(text)["input_ids"] for text in texts] == expected, "nothing is put around a text, and no rule is another"
        assert read.eos_token_id == tokenizer.eos_token_id
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [raw.encode(text, add_special_tokens=False).ids for text in texts] == expected
    assert [ids.tolist() for ids in load_tokenizer(str(folder)).encode_documents(texts)] == expected


def test_a_class_is_named_only_where_it_is_needed(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    assert "tokenization_plain.py" in make_tokenizer_files(tokenizer, Qwen2Config())
    for make in (GPT2Config, Qwen3Config, LlamaConfig):
        assert set(make_tokenizer_files(tokenizer, make())) == {"tokenizer.json", "tokenizer_config.json"}


def test_models_of_one_family_and_tokenizer_are_asked_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "_needs_class", {})
    tokenizer = make_tokenizer(tmp_path)
    files = make_tokenizer_files(tokenizer, Qwen2Config())
    asked: list[Path] = []
    monkeypatch.setattr(tokenizer_files, "_find_difference", lambda _, folder: asked.append(folder))
    assert make_tokenizer_files(tokenizer, Qwen2Config(hidden_size=64)) == files
    assert asked == []
    make_tokenizer_files(make_tokenizer(tmp_path / "other", "digits"), Qwen2Config())
    make_tokenizer_files(tokenizer, OPTConfig())
    assert len(asked) == 2
