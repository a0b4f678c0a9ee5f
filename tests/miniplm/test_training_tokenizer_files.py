"""A student's folder gives back the tokenizer of its corpus, whatever the model's family."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast, Qwen2Config

from miniplm.tokenization import CorpusTokenizer, load_tokenizer
from miniplm.training.tokenizer_files import make_tokenizer_files

TEXT = "I'M  here\n\n\n  x1234"


def make_bytes_tokenizer(folder: Path) -> CorpusTokenizer:
    """Byte-level BPE that joins runs of line ends, which Qwen2's splitting rules keep from letters but not from each other."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0} | {character: index for index, character in enumerate(alphabet, start=1)}
    for merged in ("'M", "ĊĠ", "x1"):
        vocabulary[merged] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, [("'", "M"), ("Ċ", "Ġ"), ("x", "1")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("trust_remote_code", [False, True])
@pytest.mark.parametrize("config", [Qwen2Config(), GPT2Config()], ids=["qwen2", "gpt2"])
def test_auto_tokenizer_gives_the_ids_that_the_corpus_has(tmp_path: Path, config: object, trust_remote_code: bool) -> None:
    tokenizer = make_bytes_tokenizer(tmp_path / "tokenizer")
    folder = tmp_path / "student"
    config.save_pretrained(folder)
    for name, content in make_tokenizer_files(tokenizer, config).items():
        (folder / name).write_bytes(content)
    read = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    assert read(TEXT)["input_ids"] == tokenizer.encode_documents([TEXT])[0].tolist()
    assert read.eos_token_id == tokenizer.eos_token_id


def test_a_class_is_named_only_where_it_is_needed(tmp_path: Path) -> None:
    tokenizer = make_bytes_tokenizer(tmp_path)
    assert "tokenization_plain.py" in make_tokenizer_files(tokenizer, Qwen2Config())
    assert "tokenization_plain.py" not in make_tokenizer_files(tokenizer, GPT2Config())
    assert "config.json" not in make_tokenizer_files(tokenizer, GPT2Config())
