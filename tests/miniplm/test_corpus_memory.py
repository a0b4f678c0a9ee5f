"""One document of 50 MB on one line."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from miniplm.corpus.identity import resolve_corpus_id
from miniplm.corpus.reader import load_corpus
from miniplm.storage import Storage
from miniplm.tokenization import load_tokenizer
from tests.miniplm.corpus_fixtures import EOS, make_config, read_sequences, save_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("bytes"), "bytes")


@pytest.mark.slow
def test_one_document_of_50_mb_on_one_line_is_packed_whole_in_bounded_memory(tmp_path: Path, tokenizer: str):
    rng = random.Random(0)
    words = [str(rng.randint(0, 9999)) for _ in range(1000)]
    text = " ".join(rng.choices(words, k=11_000_000))[: 50 << 20]
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": text, "domain": "d"}])
    script = """
import resource, sys
from miniplm.config import CorpusConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.storage import Storage
import transformers, pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = CorpusConfig.model_validate_json(sys.argv[2])
manifest = prepare_corpus(Storage(sys.argv[1]), config)
print(manifest.split_counts("candidate").num_tokens, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    config = make_config(tokenizer, {"path": str(path), "domain": "domain"}, sequence_length=1024, sequences_per_shard=65536)
    root = str(tmp_path / "root")
    output = subprocess.run(
        [sys.executable, "-c", script, root, config.model_dump_json()], check=True, capture_output=True, text=True
    )
    num_tokens, grown_mib = map(int, output.stdout.split()[-2:])
    storage = Storage(root)
    manifest = load_corpus(storage, resolve_corpus_id(storage, config))
    assert grown_mib < 1500
    loaded = load_tokenizer(tokenizer)
    sequences = read_sequences(storage, manifest.corpus_id, manifest.shards)
    token_ids = np.concatenate([row["token_ids"] for row in sequences])
    assert len(token_ids) == num_tokens
    assert loaded.decode(token_ids) == text + EOS
