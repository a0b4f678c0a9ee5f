"""The benchmarks start, and tell how they are used; what they measure is not for a test."""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import preparation
from benchmarks.preparation_inputs import make_tokenizer_folder, read_texts, write_sources
from benchmarks.selection import SAME_SIDES, SIDES, measure_side
from benchmarks.selection_inputs import write_scored_corpus
from miniplm import layout
from miniplm.storage.root import Storage
from tests.miniplm.corpus_fixtures import EOS, make_documents, save_tokenizer, write_jsonl


@pytest.mark.parametrize("name", ["training", "scoring", "scoring_engines", "orchestration", "selection", "preparation", "exports"])
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
    assert {(rows[side]["num_kept"], rows[side]["sum_of_ids"]) for side in SAME_SIDES} == {(500, rows["ours"]["sum_of_ids"])}
    # All sequences are of one length, so half of the tokens are half of them; nothing but noise and the mix keeps others.
    assert rows["tokens"]["sum_of_ids"] == rows["expression"]["sum_of_ids"] == rows["ours"]["sum_of_ids"]
    assert rows["temperature"]["num_kept"] == rows["mix"]["num_kept"] == 500


def test_coarse_scores_tie_and_what_was_stopped_goes_on(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = write_scored_corpus(storage, 1000, shard_sequences=300, coarse=True)
    storage.delete(layout.score_shard_manifest("synthetic", "reference", 2))  # stopped in the middle of a shard
    storage.delete(layout.corpus_shard("synthetic", "candidate", 2))
    assert write_scored_corpus(storage, 1000, shard_sequences=300, coarse=True) == corpus
    storage.write_json(layout.corpus_manifest(corpus.corpus_id), corpus.as_json())
    ours, sql = (measure_side(side, storage.root) for side in ("ours", "sql"))
    assert (ours["num_kept"], ours["sum_of_ids"]) == (sql["num_kept"], sql["sum_of_ids"])
    table = pq.read_table(storage.path(layout.score_shard("synthetic", "teacher", 0)))
    steps = 256 * table["nll_sum"].to_numpy() / table["num_scored_tokens"].to_numpy()
    assert (steps == steps.round()).all()


def test_every_side_of_the_preparation_benchmark_makes_as_many_tokens(tmp_path, monkeypatch):
    """In this process, as others cost seconds to start; each document is longer than what a side may leave out at its end."""
    make_tokenizer_folder(Path(save_tokenizer(tmp_path / "given", "bytes", eos_token=EOS)), tmp_path / "tokenizer")
    write_jsonl(tmp_path / "texts.jsonl", make_documents(60))
    num_text_bytes = write_sources(tmp_path, tmp_path / "texts.jsonl", 1 << 20, 2)

    def encode_here(folder: Path, cores: int) -> Iterator[list[int]]:
        preparation._start_pool(str(folder / "tokenizer"))
        return (preparation._encode_line(json.dumps({"text": text})) for text in read_texts(folder))

    monkeypatch.setattr(preparation, "_encode_in_pool", encode_here)
    rows = []
    for side in ("tokenizer", "words", "ours", "packing", "published", "megatron"):
        Storage(str(tmp_path)).delete("root")  # else what one side has prepared is found by the next
        rows.append(preparation.measure_side(side, tmp_path, 1))
    preparation.add_rates(rows, num_text_bytes)
    assert len({row["num_tokens"] for row in rows}) == 1
    assert num_text_bytes == sum(len(record["text"].encode()) for record in make_documents(60))
    assert all(row["mb_per_second"] > 0 and row["ratio_to_tokenizer"] > 0 for row in rows)
