"""What many tests of the library start from: an empty storage root, a small tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from miniplm.storage.root import Storage
from tests.miniplm.corpus_fixtures import save_tokenizer
from tests.miniplm.document_scores import Scored


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root"))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a byte-level tokenizer, which no test writes to."""
    return save_tokenizer(tmp_path_factory.mktemp("bytes"), "bytes")


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """A corpus with scores of its documents, to which tests add selections and nothing else."""
    return Scored(tmp_path_factory.mktemp("scored-documents"))
