"""What a grid of selections would keep, against the selections themselves, and grids that are refused."""

from __future__ import annotations

import numpy as np
import pytest

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.config.what_if import parse_grid
from miniplm.errors import ConfigError
from miniplm.selection.ranking import select_sequences
from miniplm.selection.what_if import try_selections
from miniplm.storage.root import Storage
from tests.miniplm.selection.test_selection import REFERENCE, TEACHER, make_scored_corpus, random_scores, read_selection


def test_a_grid_is_every_combination_the_first_field_slowest():
    grid = parse_grid("ratio=0.1:0.9,within=corpus|domain,temperature=0|0.1", SelectionConfig())
    assert len(grid) == 36
    assert [one.settings["ratio"] for one in grid[::4]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert grid[1].settings == {"ratio": 0.1, "within": "corpus", "temperature": 0.1}
    assert grid[3].config == SelectionConfig(ratio=0.1, within="domain", temperature=0.1)


def test_a_grid_takes_steps_lists_and_another_budget_than_the_configuration():
    base = SelectionConfig(ratio=0.3, within="domain")
    assert [one.settings for one in parse_grid("ratio=0.2:0.5:0.15|1", base)] == [
        {"ratio": 0.2},
        {"ratio": 0.35},
        {"ratio": 0.5},
        {"ratio": 1.0},
    ]
    (one,) = parse_grid("tokens=5e9", base)
    assert (one.settings, one.config.ratio, one.config.tokens, one.config.within) == (
        {"tokens": 5_000_000_000},
        None,
        5_000_000_000,
        "domain",
    )
    assert [one.settings["ratio"] for one in parse_grid("ratio=0.5:0.5", base)] == [0.5]


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ("rato=0.1", "there is no field 'rato' to try; there are ratio, tokens"),
        ("ratio", "'ratio' is no FIELD=VALUES"),
        ("ratio=", "'ratio=' is no FIELD=VALUES"),
        ("ratio=0.5,", "'' is no FIELD=VALUES"),
        ("ratio=0.9:0.1", "the range ratio=0.9:0.1 holds no value"),
        ("ratio=0.1:0.9:0", "the range ratio=0.1:0.9:0 holds no value"),
        ("ratio=0.1:0.9:-0.1", "the range ratio=0.1:0.9:-0.1 holds no value"),
        ("ratio=0.1:0.9:0.1:2", "ratio=0.1:0.9:0.1:2 is no range of numbers"),
        ("ratio=a:b", "ratio=a:b is no range of numbers"),
        ("ratio=0.1:inf", "ratio=0.1:inf is no range of numbers"),
        ("ratio=0.1:0.9:0.0001", "has 8,001 values; at most 500"),
        ("ratio=0.1:0.9:0.01,temperature=0:1", "these are 729 selections, at most 500"),
        ("ratio=0.1|1.5", "ratio=1.5 is not a valid selection:\n  ratio: Input should be less than or equal to 1"),
        ("ratio=0:0.8", "ratio=0.0 is not a valid selection:\n  ratio: Input should be greater than 0"),
        ("within=corpus|shard", "within=shard is not a valid selection:\n  within: Input should be 'corpus' or 'domain'"),
        ("within=a:b", "within has no ranges"),
        ("ratio=0.5,ratio=0.6", "ratio is given twice"),
        ("ratio=0.5,tokens=100", "exactly one of ratio, tokens and threshold"),
        ("temperature=-1", "temperature: Input should be greater than or equal to 0"),
        ("ratio=[0.1]", "'\\[0.1\\]' is not a value"),
        ("ratio=null", "'null' is not a value"),
    ],
)
def test_a_bad_grid_is_refused_by_name(grid, told):
    with pytest.raises(ConfigError, match=told):
        parse_grid(grid, SelectionConfig())


def list_ids(storage, corpus, config):
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, config)
    return manifest, set(read_selection(storage, manifest)["sequence_id"])


@pytest.mark.parametrize(
    "grid",
    [
        "ratio=0.005|0.1|1,within=corpus|domain,temperature=0|0.3",
        "tokens=100|307,within=corpus|domain",
        "threshold=-1:2:1.5,within=corpus",
    ],
)
def test_outcomes_are_those_of_the_selections_themselves(tmp_path, grid):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(101, seed=3), sequences_per_shard=60)
    config = SelectionConfig(ratio=0.4, within="domain")
    told = try_selections(storage, corpus, TEACHER, REFERENCE, config, grid)
    own, current = list_ids(storage, corpus, config)
    assert (told.selection_id, told.current.num_selected, told.num_candidates) == (own.selection_id, len(current), 101)
    for outcome, selection in zip(told.outcomes, parse_grid(grid, config), strict=True):
        if outcome.settings.get("ratio") == 0.005:
            assert "keeps none" in outcome.problem
            continue
        manifest, kept = list_ids(storage, corpus, selection.config)
        domains = {name: domain.num_selected_tokens for name, domain in manifest.domains.items() if domain.num_selected_tokens}
        assert (outcome.num_selected, outcome.num_selected_tokens, outcome.tokens) == (
            len(kept),
            manifest.num_selected_tokens,
            domains,
        )
        assert outcome.num_shared == len(kept & current)
        if outcome.threshold is not None:
            assert outcome.threshold == (manifest.pools[0].threshold if manifest.pools else manifest.threshold)


def test_the_order_and_size_of_shards_change_nothing(tmp_path):
    scores = random_scores(60, seed=5)
    told = []
    for number, size in enumerate((60, 7)):
        storage = Storage(str(tmp_path / str(number)))
        corpus = make_scored_corpus(storage, *scores, sequences_per_shard=size)
        corpus = corpus.model_copy(update={"shards": tuple(reversed(corpus.shards))})
        told.append(
            try_selections(
                storage, corpus, TEACHER, REFERENCE, SelectionConfig(), "ratio=0.1|0.5,within=corpus|domain,temperature=0|1"
            )
        )
    assert told[0].outcomes == told[1].outcomes


def test_ties_over_all_thresholds_are_shared_out_by_id(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, np.ones(40), np.ones(40), np.ones(40, dtype=int), sequences_per_shard=7)
    told = try_selections(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.25), "ratio=0.1:0.9")
    assert [one.num_selected for one in told.outcomes] == [4, 8, 12, 16, 20, 24, 28, 32, 36]
    assert [one.num_shared for one in told.outcomes] == [4, 8, *[10] * 7]
    assert [told.overlap(one) for one in told.outcomes[:3]] == [0.4, 0.8, 1.0]


def test_an_expression_that_is_not_allowed_is_refused_before_anything_is_read(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(20))

    def never(progress):
        raise AssertionError(progress)

    with pytest.raises(ConfigError, match="names an unknown column 'quality'"):
        try_selections(storage, corpus, TEACHER, REFERENCE, SelectionConfig(), "score=mean|quality", never)


def test_nothing_is_published(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(20))
    try_selections(storage, corpus, TEACHER, REFERENCE, SelectionConfig(), "ratio=0.1:0.9")
    assert not (tmp_path / layout.selection_folder("")).exists()
