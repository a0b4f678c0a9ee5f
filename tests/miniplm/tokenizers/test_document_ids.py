"""A model needs rows for the ids that a sequence can hold, and for no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from miniplm.tokenizers.document_ids import count_document_ids
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer

WORDS = {"<unk>": 0, "a": 1, "b": 2, "<eos>": 3}


def make(folder: Path, *added: AddedToken, eos: str = "<eos>") -> CorpusTokenizer:
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)
    tokenizer.backend_tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)
    return load_tokenizer(str(folder), eos)


@pytest.mark.parametrize(
    ("added", "num_ids"),
    [
        ((), 4),
        ((AddedToken("<image>", special=True),), 4),  # Gemma 3: id 262144 of a model with as many rows
        ((AddedToken("<image>", special=True), AddedToken("<think>", special=False)), 6),
        ((AddedToken("<think>", special=False), AddedToken("<image>", special=True)), 5),
    ],
)
def test_an_added_special_token_needs_no_row(tmp_path: Path, added: tuple[AddedToken, ...], num_ids: int) -> None:
    tokenizer = make(tmp_path, *added)
    assert count_document_ids(tokenizer) == num_ids
    text = " ".join(["a", "b", *(token.content for token in added)])
    assert max(max(token_ids, default=0) for token_ids in tokenizer.encode_documents([text])) < num_ids


def test_the_separator_needs_a_row(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, AddedToken("<image>", special=True), eos="<end>")
    assert tokenizer.eos_token_id >= len(WORDS)
    assert count_document_ids(tokenizer) == tokenizer.eos_token_id + 1
