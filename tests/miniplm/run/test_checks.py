"""A given model is checked against the corpus before anything is prepared: its rows, its positions, its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from miniplm.config.run import RunConfig
from miniplm.errors import ModelError
from miniplm.run.checks import check_model
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer
from tests.miniplm.made_models import make_llama, save_model

NUM_WORDS = 30


def save_tokenizer(folder: Path, *added: AddedToken) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, NUM_WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.backend_tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)


def check(folder: Path, sequence_length: int = 32) -> None:
    content = {
        "name": "made",
        "storage": "memory://made",
        "corpus": {
            "sources": [{"path": "x.jsonl", "domain_name": "all"}],
            "tokenizer": str(folder),
            "sequence_length": sequence_length,
        },
        "teacher": {"model": str(folder)},
        "reference": {"model": str(folder)},
        "students": [],
    }
    config = RunConfig.model_validate(content)
    check_model("teacher", config.teacher, config, Storage(config.storage), load_tokenizer(str(folder)))


def test_an_added_special_token_beyond_the_rows_is_usable(tmp_path: Path) -> None:
    folder = save_model(make_llama(vocab_size=NUM_WORDS), tmp_path / "gemma")
    save_tokenizer(folder, AddedToken("<image_soft_token>", special=True))
    check(folder)


def test_an_added_word_beyond_the_rows_is_refused(tmp_path: Path) -> None:
    folder = save_model(make_llama(vocab_size=NUM_WORDS), tmp_path / "model")
    save_tokenizer(folder, AddedToken("<think>", special=False))
    with pytest.raises(ModelError, match=r"teacher: model .* has a vocabulary of 30 ids, .* gives ids up to 30"):
        check(folder)


def test_too_few_positions_are_refused(tmp_path: Path) -> None:
    folder = save_model(make_llama(vocab_size=NUM_WORDS, max_positions=16), tmp_path / "model")
    save_tokenizer(folder)
    check(folder, sequence_length=16)
    with pytest.raises(ModelError, match=r"has 16 positions, corpus\.sequence_length is 17; make that at most 16"):
        check(folder, sequence_length=17)


def test_a_config_that_does_not_fit_is_refused_before_the_corpus_is_prepared(tmp_path: Path) -> None:
    folder = save_model(make_llama(vocab_size=NUM_WORDS), tmp_path / "model")
    save_tokenizer(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"lacks weights: model\.layers\.2\."):
        check(folder)
