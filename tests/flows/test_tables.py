"""What the terminal tells of a corpus."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flows.cli.tables import print_taken
from miniplm.records.manifests import CorpusManifest, LeftOut, SourceEntry, TokenizerEntry
from miniplm.storage.root import Storage


@pytest.fixture
def manifest() -> CorpusManifest:
    paths = (r"/in/caf\xe9.jsonl", "/in/b.jsonl", "/in/b.jsonl")
    return CorpusManifest(
        corpus_id="c-1",
        tokenizer=TokenizerEntry(name="t", digest="", vocab_size=2, eos_token="", eos_token_id=0),
        sequence_length=8,
        sources=(
            *(SourceEntry(path=path, digest=path, num_bytes=1, num_records=5, first_document_id=0) for path in paths),
            SourceEntry(path="/in/empty.jsonl", digest="e", num_bytes=0, num_records=0, first_document_id=15),
        ),
        num_records=15,
        rejected={"malformed_json": 5},
        rejected_by_file={paths[0]: 5},
        left_out=(LeftOut(source="/in/*", reason="hidden", num_files=12, names=tuple(f"/in/.{index}" for index in range(10))),),
        domains={},
        shards=(),
        versions={},
    )


def test_all_that_was_not_taken_is_told(manifest: CorpusManifest) -> None:
    console = Console(file=io.StringIO(), width=300, highlight=False, markup=False)
    print_taken(console, Storage("memory://root"), manifest)
    told = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert told == [
        "15 records read from 4 files, 5 rejected (5 malformed_json)",
        "rejected records: memory:///root/corpora/c-1/quarantine",
        r"no document came of these files: /in/caf\xe9.jsonl (5 rejected), /in/empty.jsonl (empty)",
        "read more than once, as several sources name them or there are copies: /in/b.jsonl (2 times)",
        "left out of /in/*, hidden: " + ", ".join(f"/in/.{index}" for index in range(10)) + ", ... (12 in all)",
    ]
