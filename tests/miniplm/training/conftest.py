"""A corpus to train on, and a selection of it."""

from __future__ import annotations

import pytest

from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.storage.root import Storage
from tests.miniplm.made_trainings import make_selection, make_training_corpus


@pytest.fixture
def corpus(storage: Storage) -> CorpusManifest:
    return make_training_corpus(storage)


@pytest.fixture
def selection(storage: Storage, corpus: CorpusManifest) -> SelectionManifest:
    return make_selection(storage, corpus, ([0, 3, 6], [2], [8, 1]))
