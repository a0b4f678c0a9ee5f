"""Two corpora that all tests of exports read: one with ids of two bytes and EOS 0, one with ids and an EOS that need four."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.miniplm.corpus_fixtures import EOS, save_tokenizer
from tests.miniplm.export.exported import Selected, make_selected, make_texts

_NUM_UNUSED = 70_000


def save_large_tokenizer(folder: Path) -> str:
    """A byte a token, with ids from 70,000 on, and EOS the last of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {f"unused-{index}": index for index in range(_NUM_UNUSED)}
    vocabulary |= {letter: _NUM_UNUSED + index for index, letter in enumerate(alphabet)} | {EOS: _NUM_UNUSED + len(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Selected:
    folder = tmp_path_factory.mktemp("small")
    return make_selected(folder, save_tokenizer(folder / "tokenizer"), make_texts(60), sequence_length=24, sequences_per_shard=20)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Selected:
    folder = tmp_path_factory.mktemp("large")
    records = make_texts(24, seed=1)
    return make_selected(
        folder, save_large_tokenizer(folder / "tokenizer"), records, ratio=0.7, seed=1, sequence_length=40, sequences_per_shard=25
    )


@pytest.fixture(params=["small", "large"])
def selected(request: pytest.FixtureRequest) -> Selected:
    found: Selected = request.getfixturevalue(request.param)
    return found
