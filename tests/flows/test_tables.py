"""What the terminal tells of a corpus."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from flows.cli.tables import print_selection, print_taken
from miniplm import layout
from miniplm.config.proxy import ProxyConfig
from miniplm.config.selection import SelectionConfig
from miniplm.records.manifests import CorpusManifest, LeftOut, SourceEntry, TokenizerEntry
from miniplm.records.selections import PoolSelection, SelectionManifest
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import describe_selection
from tests.miniplm.proxy.made_labels import REFERENCE, make_proxy


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


def test_how_a_budget_was_met_is_told() -> None:
    def pool(domain: str, num_tokens: int, threshold: float | None) -> PoolSelection:
        return PoolSelection(
            domains=(domain,),
            num_ranked=50,
            num_ranked_tokens=5000,
            num_selected=5,
            num_selected_tokens=num_tokens,
            threshold=threshold,
        )

    selection = describe_selection(
        "s",
        "c",
        ratio=None,
        rule={"tokens": 1000, "mix": {"a": 0.2, "b": {"at_least": 0.1}}},
        num_candidates=100,
        num_selected=10,
        num_selected_tokens=990,
        left_out={"where": 7},
        threshold=None,
        pools=(pool("a", 195, 0.5), pool("b", 795, -0.25)),
    )

    def tell(selection: SelectionManifest) -> list[str]:
        console = Console(file=io.StringIO(), width=300, highlight=False, markup=False)
        print_selection(console, Storage("memory://root"), selection)
        told: list[str] = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        note = "teacher and reference: mean NLL, nats a token; difference: median of reference - teacher"
        return told[told.index(note) + 1 : -1]

    assert tell(selection) == [
        "left out before ranking (where): 7 of 100",
        "budget: 990 of 1,000 tokens; the 10 left are fewer than the next sequences have",
        "  a: 195 tokens, 19.50% of the budget, asked 20.00%, kept from 0.5",
        "  b: 795 tokens, 79.50% of the budget, asked 10.00% to 100.00%, kept from -0.25",
    ]
    one = selection.model_copy(update={"rule": {"tokens": 990}, "pools": (pool("a", 990, 0.5),), "left_out": {}})
    assert tell(one) == ["budget: 990 of 990 tokens; met exactly"]
    cut = one.model_copy(update={"rule": {"threshold": 0.5}})
    assert tell(cut) == ["threshold: 20.0% of what was ranked scores at least 0.5"]
    assert tell(one.model_copy(update={"rule": {}, "pools": (), "ratio": 0.1})) == []


def test_a_proxy_whose_labels_are_gone_is_told_of_without_its_overlap(tmp_path: Path) -> None:
    made = make_proxy(Storage(str(tmp_path)), ProxyConfig(share=0.5), num=200)
    made.predict()
    rule = SelectionConfig(score="difference_score + 1")
    selection = select_sequences(made.storage, made.corpus, made.manifest.proxy_id, REFERENCE.model_id, rule)
    shutil.rmtree(tmp_path / layout.corpus_folder(made.labels.corpus_id) / "candidate")
    console = Console(file=io.StringIO(), width=300, highlight=False, markup=False)
    print_selection(console, made.storage, selection)
    assert "how well cannot be told any more: " in console.file.getvalue()  # type: ignore[attr-defined]
