"""One document of 50 MB on one line."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import numpy as np
import pytest

from miniplm.config.run import CorpusConfig
from miniplm.corpus.identity import resolve_corpus_id
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import load_corpus, read_shard, read_token_ids
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer
from tests.forks import FORKS
from tests.miniplm.corpus_fixtures import EOS, make_config, write_jsonl


def prepare_and_measure(root: str, config: str, told: str) -> None:
    """The body of a process: writes how many candidate tokens there are, and by how many MiB the process grew."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest = prepare_corpus(Storage(root), CorpusConfig.model_validate_json(config))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    Path(told).write_text(f"{manifest.split_counts('candidate').num_tokens} {grown // 1024}")


@pytest.mark.slow
def test_one_document_of_50_mb_on_one_line_is_packed_whole_in_bounded_memory(tmp_path: Path, tokenizer: str):
    rng = random.Random(0)
    # Long words of long tokens, as the tokenizer takes its time by the word and the token.
    words = ["".join(rng.choices(["Numbers", "Number", "print"], k=30)) for _ in range(300)]
    text = " ".join(rng.choices(words, k=300_000))[: 50 << 20]
    assert len(text) == 50 << 20
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": text, "domain": "d"}])
    config = make_config(tokenizer, {"path": str(path), "domain": "domain"}, sequence_length=1024, sequences_per_shard=65536)
    root, told = str(tmp_path / "root"), tmp_path / "told"
    process = FORKS.Process(target=prepare_and_measure, args=(root, config.model_dump_json(), str(told)))
    process.start()
    process.join()
    assert process.exitcode == 0
    num_tokens, grown_mib = map(int, told.read_text().split())
    storage = Storage(root)
    manifest = load_corpus(storage, resolve_corpus_id(storage, config))
    assert 100 < grown_mib < 1500
    token_ids = np.concatenate([ids for shard in manifest.shards for ids in read_token_ids(read_shard(storage, shard))])
    assert len(token_ids) == num_tokens
    # By the tokenizers library's own decoder, which takes a third of the time of one that knows the bytes of each token.
    assert load_tokenizer(tokenizer).backend.decode(token_ids.tolist(), skip_special_tokens=False) == text + EOS
