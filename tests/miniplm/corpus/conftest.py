"""Sources and the configuration of a corpus that grows by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from miniplm.config.run import CorpusConfig
from tests.miniplm.corpus_fixtures import make_documents, make_growing, write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources that have one file so far."""
    write_jsonl(tmp_path / "in/a.jsonl", make_documents(60))
    return tmp_path / "in"


@pytest.fixture
def config(folder: Path, tokenizer: str) -> CorpusConfig:
    return make_growing(folder, tokenizer)
