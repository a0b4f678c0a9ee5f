"""By every rule the same is kept, in the same bytes, whatever comes in which order and whatever is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.progress import Progress
from miniplm.records.manifests import CorpusManifest
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import make_corpus, write_scores
from tests.miniplm.selection.test_rules import write_signal
from tests.miniplm.selection.test_selection import REFERENCE, TEACHER, random_scores, read_selection


@pytest.fixture(scope="module")
def two_orders(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Storage, CorpusManifest]]:
    """The same candidates in one shard, and in four whose score files were written last to first with their rows in other orders."""
    both = []
    teacher, reference, num_scored = random_scores(40, 2)
    sequences = [[1] * (3 + i % 5) for i in range(40)]
    for size in (40, 10):
        storage = Storage(str(tmp_path_factory.mktemp(f"shards-of-{size}")))
        corpus = make_corpus(storage, {"candidate": [sequences[start : start + size] for start in range(0, 40, size)]})
        for shard in reversed(corpus.split_shards("candidate")):
            ids = np.arange(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
            ids = ids if size == 40 else np.roll(ids, 1 + shard.shard_index)
            write_scores(storage, shard, TEACHER, teacher[ids], num_scored[ids], ids)
            write_scores(storage, shard, REFERENCE, reference[ids], num_scored[ids], ids)
        both.append((storage, corpus))
    return both


def add_signal(two_orders: list[tuple[Storage, CorpusManifest]]) -> dict[str, Any]:
    """Fields of a rule that ranks by a signal whose rows come last to first."""
    path = Path(two_orders[0][0].root) / "edu.parquet"
    signal = write_signal(path, sequence_id=np.arange(40)[::-1], edu=np.arange(40)[::-1] % 7 / 3)
    return {"score": "difference_score + edu", "signals": [signal]}


@settings(max_examples=14, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.1, 3.0]),
            "where": st.sampled_from(["num_tokens > 4", "domain = 'a' OR sequence_id % 3 = 0"]),
            "score": st.sampled_from(["sum", "num_tokens", "difference_score * num_tokens"]),
        },
    ),
    st.sampled_from(
        [
            {"ratio": 0.4},
            {"ratio": 0.4, "within": "domain"},
            {"tokens": 50},
            {"tokens": 500, "repetitions": 4},
            {"threshold": 0.0, "temperature": 0.0},
            {"ratio": 0.4, "mix": {"a": 0.3}},
            {"tokens": 60, "mix": {"b": {"at_least": 0.6}}},
        ]
    ),
    st.booleans(),
)
def test_the_same_is_kept_whatever_the_order_of_rows_and_shards(two_orders, rule, budget, has_signal) -> None:
    config = SelectionConfig.model_validate({**rule, **budget, **(add_signal(two_orders) if has_signal else {})})
    kept = []
    for storage, corpus in two_orders:
        manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, config)
        kept.append((read_selection(storage, manifest), manifest.domains, manifest.pools, manifest.left_out))
    assert kept[0][0].equals(kept[1][0])
    assert kept[0][1:] == kept[1][1:]


@pytest.mark.parametrize(
    "rule",
    [
        {"tokens": 70, "temperature": 0.5, "score": "difference_score + 1", "where": "num_tokens > 3", "mix": {"a": 0.5}},
        {"tokens": 500, "repetitions": 4, "signals": "edu"},
        {"threshold": 0.0},
    ],
)
def test_interrupted_in_either_pass_a_rule_gives_the_same_bytes(two_orders, rule) -> None:
    class Interrupt(BaseException):
        pass

    storage, corpus = two_orders[1]
    config = SelectionConfig.model_validate(rule | (add_signal(two_orders) if "signals" in rule else {}))

    def list_files(selection_id: str) -> dict[str, bytes]:
        folder = layout.selection_folder(selection_id)
        return {name: storage.read_bytes(f"{folder}/{name}") for name in storage.list_names(folder)}

    whole = list_files(select_sequences(storage, corpus, TEACHER, REFERENCE, config).selection_id)
    for key in ("read scores", "select"):
        storage.delete("selections")

        def interrupt(progress: Progress, key: str = key) -> None:
            if progress.key == key and progress.done == 2:
                raise Interrupt

        with pytest.raises(Interrupt):
            select_sequences(storage, corpus, TEACHER, REFERENCE, config, interrupt)
        assert list_files(select_sequences(storage, corpus, TEACHER, REFERENCE, config).selection_id) == whole
