"""The benchmarks start, and tell how they are used; what they measure is not for a test."""

import runpy
import sys

import pytest

from benchmarks.selection import SIDES, measure_side
from benchmarks.selection_inputs import write_scored_corpus
from miniplm import layout
from miniplm.storage.root import Storage


@pytest.mark.parametrize("name", ["training", "scoring", "scoring_engines", "orchestration", "selection"])
def test_help_teaches(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    # Another test may have imported it, which running it as a program warns of.
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert not left.value.code
    assert "--json" in capsys.readouterr().out


def test_every_side_of_the_selection_benchmark_keeps_the_same(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = write_scored_corpus(storage, 1000, shard_sequences=300)
    storage.write_json(layout.corpus_manifest(corpus.corpus_id), corpus.as_json())
    rows = {side: measure_side(side, storage.root) for side in SIDES}
    assert {(row["num_kept"], row["sum_of_ids"]) for side, row in rows.items() if side != "read"} == {
        (500, rows["ours"]["sum_of_ids"])
    }
