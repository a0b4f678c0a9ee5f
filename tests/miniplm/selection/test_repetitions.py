"""A budget above what there is, filled by using what is kept more than once: in the selection, in trainings and in exports."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from miniplm.config.exports import ExportConfig
from miniplm.config.selection import SelectionConfig
from miniplm.derived.sets import make_set
from miniplm.errors import ConfigError
from miniplm.export.exporting import export_selection
from miniplm.export.job import ExportJob
from miniplm.training.data import SequenceOrder, read_training_shard
from miniplm.training.methods import METHODS, MethodInputs
from tests.miniplm.document_scores import Scored


def total(scored: Scored) -> int:
    return sum(shard.num_tokens for shard in scored.corpus.split_shards("candidate"))


@pytest.mark.parametrize("unit", ["sequence", "document"])
def test_all_is_used_in_whole_passes_and_the_best_once_more(scored: Scored, unit: str) -> None:
    budget = int(2.3 * total(scored))
    manifest = scored.select(unit=unit, tokens=budget, repetitions=3)
    rows = pd.concat(scored.read(manifest)).drop_duplicates(f"{unit}_id").set_index(f"{unit}_id")
    if unit == "sequence":
        rows["num_tokens"] = pd.Series({row["sequence_id"]: row["num_tokens"] for row in scored.sequences()})
    once_more = scored.select(unit=unit, tokens=budget - 2 * total(scored))
    best = set(pd.concat(scored.read(once_more))[f"{unit}_id"])
    assert rows["repetitions"].to_dict() == {row: 3 if row in best else 2 for row in rows.index}
    assert manifest.num_selected == len(rows) == manifest.num_candidates
    assert manifest.num_selected_tokens == total(scored)
    used = int((rows["repetitions"] * rows["num_tokens"]).sum())
    assert manifest.num_used_tokens == used == 2 * total(scored) + once_more.num_selected_tokens
    assert budget - rows["num_tokens"].max() < used <= budget
    assert manifest.list_passes() == [1, 2, 3]


def test_a_budget_within_what_there_is_repeats_nothing(scored: Scored) -> None:
    budget = total(scored) // 2
    repeated, plain = scored.select(tokens=budget, repetitions=4), scored.select(tokens=budget)
    assert [shard.digest for shard in repeated.shards] == [shard.digest for shard in plain.shards]
    assert repeated.num_used_tokens == repeated.num_selected_tokens
    assert repeated.selection_id != plain.selection_id


def test_a_budget_above_what_may_be_repeated_is_refused_with_the_numbers(scored: Scored) -> None:
    budget = 2 * total(scored) + 1
    with pytest.raises(
        ConfigError, match=rf"selection.tokens is {budget:,}.* 2 times {2 * total(scored):,}.*raise selection.repetitions"
    ):
        scored.select(tokens=budget, repetitions=2)
    with pytest.raises(ConfigError, match=r"let candidates be used more than once: selection\.repetitions"):
        scored.select(unit="sequence", tokens=budget)
    for rule, message in (({}, "fill a budget: give tokens"), ({"tokens": 5, "mix": {"web": 0.5}}, "leave mix out")):
        with pytest.raises(ValueError, match=message):
            SelectionConfig.model_validate({"repetitions": 2, **rule})


@pytest.mark.parametrize("unit", ["sequence", "document"])
def test_an_epoch_of_a_training_goes_over_what_is_repeated_so_often(scored: Scored, unit: str) -> None:
    manifest = scored.select(unit=unit, tokens=int(1.6 * total(scored)), repetitions=2)
    inputs, method = MethodInputs(scored.corpus, manifest), METHODS["miniplm"]
    for job in method.list_derived_jobs(inputs):
        make_set(scored.storage, job)
    shards = method.list_shards(scored.storage, inputs)
    assert sum(shard.num_tokens for shard in shards) == manifest.num_used_tokens
    tokens = np.concatenate([read_training_shard(scored.storage, shard)[0] for shard in shards if shard.num_sequences])
    kept = pd.concat(scored.read(manifest)).drop_duplicates(f"{unit}_id").set_index(f"{unit}_id")["repetitions"]
    expected: Counter[int] = Counter()
    for row in scored.sequences():
        owners = [row["sequence_id"]] * len(row["token_ids"]) if unit == "sequence" else row["owners"]
        for owner, token in zip(owners, row["token_ids"], strict=True):
            expected[token] += int(kept[owner])
    assert Counter(tokens.tolist()) == expected
    order = SequenceOrder(scored.storage, shards, seed=0)
    assert sum(map(len, order.read(0, order.num_sequences))) == manifest.num_used_tokens
    order.close()


@pytest.mark.parametrize("unit", ["sequence", "document"])
def test_an_export_holds_a_pass_after_the_other(scored: Scored, tmp_path: Path, unit: str) -> None:
    manifest = scored.select(unit=unit, tokens=int(1.6 * total(scored)), repetitions=2)
    config = ExportConfig.model_validate({"format": "jsonl", "to": str(tmp_path / "out"), "shard_tokens": 400})
    exported, _ = export_selection(ExportJob(scored.storage, scored.corpus, manifest, config))
    assert exported.num_source_tokens == manifest.num_used_tokens
    rows = [json.loads(line) for path in sorted((tmp_path / "out").glob("*.jsonl")) for line in path.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    again = [row for row in rows if row["id"].endswith("-use-2")]
    assert rows[-len(again) :] == again
    ids = Counter(sequence for row in rows for sequence in row["sequence_ids"]) if unit == "sequence" else Counter()
    if unit == "document":
        kept = pd.concat(scored.read(manifest)).drop_duplicates("document_id").set_index("document_id")["repetitions"]
        assert Counter(row["document_id"] for row in rows) == kept.to_dict()
    else:
        best = set(pd.concat(scored.read(manifest)).query("repetitions == 2")["sequence_id"])
        assert {sequence for row in again for sequence in row["sequence_ids"]} == best
        assert set(ids) >= best
    assert any("up to 2 times" in note for note in exported.notes)
