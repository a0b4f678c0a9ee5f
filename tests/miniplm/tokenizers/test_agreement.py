"""Whether a model's own tokenizer is the corpus's: by what maps text to ids, not by what a class of transformers adds."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from miniplm.errors import TokenizerError
from miniplm.records.manifests import CorpusManifest
from miniplm.tokenizers.agreement import find_disagreement
from miniplm.tokenizers.tokenizer import load_tokenizer
from miniplm.training.recipe import is_tokenizer_of
from tests.miniplm.corpus_fixtures import EOS, MAKERS


def write_model(folder: Path, model_type: str, backend: Tokenizer, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("tokenizer_class", ["Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "mamba"])
def test_models_that_share_a_tokenizer_json_agree_whatever_their_family(
    tmp_path: Path, model_type: str, tokenizer_class: str | None
):
    backend = MAKERS["bytes"]()
    corpus = load_tokenizer(str(write_model(tmp_path / "teacher", "llama", backend, eos_token=EOS)))
    settings = {} if tokenizer_class is None else {"tokenizer_class": tokenizer_class, "eos_token": EOS, "pad_token": "<pad>"}
    other = write_model(tmp_path / "reference", model_type, backend, **settings)
    assert find_disagreement(other, corpus) is None


def test_a_separator_that_one_folder_names_need_not_be_named_by_the_other(tmp_path: Path):
    backend = MAKERS["bytes"]()
    corpus = load_tokenizer(str(write_model(tmp_path / "teacher", "llama", backend, eos_token="<stop>")))
    assert corpus.eos_token_id == backend.get_vocab_size()
    assert find_disagreement(write_model(tmp_path / "reference", "qwen2", backend), corpus) is None


def test_another_vocabulary_is_counted(tmp_path: Path):
    backend = MAKERS["bytes"]()
    corpus = load_tokenizer(str(write_model(tmp_path / "teacher", "llama", backend, eos_token=EOS)))
    backend.add_tokens(["more", "words"])
    larger = write_model(tmp_path / "larger", "llama", backend, eos_token=EOS)
    assert (
        find_disagreement(larger, corpus)
        == f"0 of {corpus.entry.vocab_size} tokens have another id, and it has 2 that the corpus's has not"
    )
    content = json.loads((tmp_path / "teacher" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    swapped = write_model(tmp_path / "swapped", "llama", Tokenizer.from_str(json.dumps(content)), eos_token=EOS)
    assert find_disagreement(swapped, corpus) == f"2 of {corpus.entry.vocab_size} tokens have another id"
    (swapped / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=str(swapped)):
        find_disagreement(swapped, corpus)


def test_other_splitting_rules_of_one_vocabulary_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    backend = MAKERS["bytes"]()
    corpus = load_tokenizer(str(write_model(tmp_path / "teacher", "llama", backend, eos_token=EOS)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    same = write_model(tmp_path / "same", "llama", backend, eos_token=EOS)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    other = write_model(tmp_path / "other", "llama", backend, eos_token=EOS)
    with caplog.at_level(logging.WARNING, "miniplm"):
        assert find_disagreement(same, corpus) is None
        assert not caplog.records
        assert find_disagreement(other, corpus) is None
    (message,) = [record.message for record in caplog.records]
    assert str(other) in message
    assert "other rules to cut text with (pre_tokenizer)" in message


def test_a_students_tokenizer_with_other_rules_is_one_of_its_own(tmp_path: Path):
    backend = MAKERS["bytes"]()
    corpus_tokenizer = load_tokenizer(str(write_model(tmp_path / "corpus", "llama", backend, eos_token=EOS)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    own = load_tokenizer(str(write_model(tmp_path / "own", "llama", backend, eos_token=EOS)))
    corpus = CorpusManifest.model_construct(tokenizer=corpus_tokenizer.full_entry)
    earlier = CorpusManifest.model_construct(tokenizer=corpus_tokenizer.entry)
    assert own.entry.digest == corpus_tokenizer.entry.digest
    assert [is_tokenizer_of(corpus, one) for one in (corpus_tokenizer, own)] == [True, False]
    assert is_tokenizer_of(earlier, own), "a corpus of an earlier version says nothing of its rules"
