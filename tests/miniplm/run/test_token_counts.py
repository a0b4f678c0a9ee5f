"""How much a run has to prepare, told before it does."""

from __future__ import annotations

from pathlib import Path

from miniplm.config.run import RunConfig
from miniplm.run.plan import RunPlan
from miniplm.run.token_counts import count_tokens
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer
from tests.miniplm.corpus_fixtures import make_documents, make_growing, write_jsonl


def test_the_hours_of_a_fleet_say_what_is_left_to_the_parent(tmp_path: Path, storage: Storage, tokenizer: str) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", make_documents(60))
    content = {
        "name": "ours",
        "storage": storage.root,
        "corpus": make_growing(tmp_path / "in", tokenizer).model_dump(),
        "teacher": {"model": "m"},
        "reference": {"model": "r"},
    }
    told = {}
    for prepare in ("parent", "workers"):
        config = RunConfig.model_validate(content | {"execution": {"fan_out": "work-pool", "prepare": prepare}})
        counts, rate, notes = count_tokens(storage, RunPlan.of(config), load_tokenizer(tokenizer))
        assert rate > 0
        told[prepare] = counts, notes
    assert told["parent"][0] == told["workers"][0]
    assert told["parent"][1] == []
    (note,) = told["workers"][1]
    assert note.startswith("prepare: the hours are those of one machine like this one, which the workers share; the parent packs")
    assert note.endswith("which takes 0 s at least")
    write_jsonl(tmp_path / "in/a.jsonl", [{"text": None}] * 3)
    counts, _, notes = count_tokens(storage, RunPlan.of(config), load_tokenizer(tokenizer))
    assert (counts.new_tokens, notes) == (0, [])
