"""What `duplicates: best` and `contamination: drop` leave out of selections: against a plain loop over the ranking, shards in any order."""

from __future__ import annotations

import numpy as np
import pytest

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.errors import ConfigError
from miniplm.overlap.copies import provide_copies, read_copies
from miniplm.overlap.exclusions import CONTAMINATED, COPY, list_copied_parts, plan_exclusions
from miniplm.overlap.redundancy import CopiedParts, find_redundant
from miniplm.selection.exclusions import ExcludedIds, Exclusions
from miniplm.selection.ranking import resolve_selection_id, select_sequences
from miniplm.selection.what_if import try_selections
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import write_scores
from tests.miniplm.overlap.test_copies import draw_documents, make_packed
from tests.miniplm.selection.test_selection import REFERENCE, TEACHER, read_selection

BEST = SelectionConfig(ratio=1.0, duplicates="best")


def make_scored(storage, seed, rows_a_shard=20, capacity=50):
    """A packed corpus with copies, every sequence scored at random with ties; the difference of each sequence."""
    corpus = make_packed(storage, draw_documents(seed, 20), capacity, rows_a_shard)
    num = corpus.split_counts("candidate").num_sequences
    difference = np.random.default_rng(seed).integers(0, 6, num).astype(float)
    for shard in corpus.split_shards("candidate"):
        rows = slice(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
        ones = np.ones(shard.num_sequences, dtype=int)
        write_scores(storage, shard, TEACHER, ones.astype(float), ones)
        write_scores(storage, shard, REFERENCE, 1.0 + difference[rows], ones)
    return corpus, difference


def plan(storage, corpus, config, sources=()):
    return plan_exclusions(storage, corpus, TEACHER, REFERENCE, config, lambda: sources)


def select(storage, corpus, config):
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, config, exclusions=plan(storage, corpus, config))
    return manifest, read_selection(storage, manifest)


def drop_one_by_one(copies, sizes, difference):
    """By dictionaries: the sequences that are left out."""
    standing, dropped = {}, set()
    for sequence in sorted(range(len(difference)), key=lambda one: (-difference[one], one)):
        parts = [row for row in copies if row["sequence_id"] == sequence]
        copied = [row["num_tokens"] for row in parts if standing.get(row["group_id"], row["document_id"]) != row["document_id"]]
        if parts and sum(copied) >= 0.8 * sizes[sequence]:
            dropped.add(sequence)
            continue
        for row in parts:
            standing.setdefault(row["group_id"], row["document_id"])
    return dropped


@pytest.mark.parametrize(("seed", "rows_a_shard"), [(0, 100), (7, 5)])
def test_of_each_group_the_best_stays_whatever_the_shards(tmp_path, seed, rows_a_shard):
    storage = Storage(str(tmp_path))
    corpus, difference = make_scored(storage, seed, rows_a_shard)
    copies = read_copies(storage, provide_copies(storage, corpus)).to_pylist()
    expected = drop_one_by_one(
        copies, [50] * (len(difference) - 1) + [corpus.split_counts("candidate").num_tokens % 50 or 50], difference
    )
    shuffled = corpus.model_copy(update={"shards": tuple(reversed(corpus.shards))})
    for one in (corpus, shuffled):
        manifest, rows = select(storage, one, BEST)
        assert set(range(len(difference))) - set(rows["sequence_id"]) == expected
        assert manifest.left_out == {COPY: len(expected)}
        assert manifest.num_candidates == len(difference) == manifest.num_selected + len(expected)
    assert expected
    # Whoever is left out has a copy that is ranked no lower, and stays.
    groups = {row["group_id"] for row in copies}
    assert groups == {row["group_id"] for row in copies if row["sequence_id"] not in expected}


def test_a_ratio_is_of_what_is_ranked_and_the_next_best_fill_it(tmp_path):
    storage = Storage(str(tmp_path))
    corpus, difference = make_scored(storage, 0)
    manifest, rows = select(storage, corpus, BEST.model_copy(update={"ratio": 0.5}))
    copy = plan(storage, corpus, BEST).find()[0]
    left = [one for one in sorted(range(len(difference)), key=lambda one: (-difference[one], one)) if one not in copy.ids]
    assert sorted(rows["sequence_id"]) == sorted(left[: len(left) // 2])
    assert manifest.pools[0].num_ranked == len(left)


def test_noise_does_not_decide_which_copy_is_best(tmp_path):
    storage = Storage(str(tmp_path))
    corpus, _ = make_scored(storage, 7)
    plain, noisy = (select(storage, corpus, BEST.model_copy(update={"temperature": t}))[1] for t in (0.0, 3.0))
    assert plain["sequence_id"].tolist() == noisy["sequence_id"].tolist()


def test_a_copy_that_is_left_out_for_another_reason_stands_for_nothing(tmp_path):
    parts = CopiedParts(*(np.array(column) for column in ([1, 2, 3], [10, 20, 30], [10, 10, 10], [5, 5, 5])))
    ids, sizes = np.array([1, 2, 3]), np.array([5, 5, 5])
    assert find_redundant(parts, ids, sizes, np.array([3.0, 2.0, 2.0])).tolist() == [2, 3]
    assert find_redundant(parts, ids, sizes, np.array([np.nan, 2.0, 2.0])).tolist() == [3]
    # Of a sequence with other text enough stays.
    assert find_redundant(parts, ids, np.array([5, 7, 6]), np.array([3.0, 2.0, 2.0])).tolist() == [3]


def test_parts_of_documents_are_whole_documents(tmp_path):
    storage = Storage(str(tmp_path))
    corpus, _ = make_scored(storage, 3)
    copies = read_copies(storage, provide_copies(storage, corpus))
    parts = list_copied_parts(copies, "document")
    assert parts.row_ids.tolist() == sorted(set(copies["document_id"].to_pylist()))
    assert (parts.row_ids == parts.document_ids).all()


def test_contaminated_sequences_are_left_out_first(tmp_path):
    storage = Storage(str(tmp_path))
    corpus, difference = make_scored(storage, 0)
    config = SelectionConfig(ratio=1.0, contamination="drop", duplicates="best")
    excluded = [ExcludedIds(CONTAMINATED, np.array([0, 3]))]
    found = plan(storage, corpus, BEST)
    exclusions = Exclusions(found.content | {"contamination_id": "x"}, lambda: [*excluded, *found.find()])
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, config, exclusions=exclusions)
    kept = set(read_selection(storage, manifest)["sequence_id"])
    assert not kept & {0, 3}
    assert manifest.left_out[CONTAMINATED] == 2
    assert sum(manifest.left_out.values()) == len(difference) - len(kept)
    assert manifest.rule["contamination_id"] == "x"


def test_a_kill_anywhere_gives_the_same_bytes(tmp_path):
    class Kill(BaseException):
        pass

    def run(folder, kill_at=0):
        storage, told = Storage(str(tmp_path / folder)), []
        corpus, _ = make_scored(storage, 7, 5)

        def report(progress):
            told.append(progress.key)
            if len(told) == kill_at:
                raise Kill

        config = BEST.model_copy(update={"temperature": 0.5, "ratio": 0.5})
        exclusions = plan_exclusions(storage, corpus, TEACHER, REFERENCE, config, tuple, on_progress=report)
        manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, config, report, exclusions)
        paths = [layout.selection_shard(manifest.selection_id, shard.shard_index) for shard in manifest.shards]
        return manifest, [storage.read_bytes(path) for path in paths], told

    whole, told = run("whole")[:2], run("again")[2]
    assert set(told) == {"look for copies", "read scores", "select"}
    for kill_at in {told.index(key) + 1 for key in told} | {len(told)}:
        with pytest.raises(Kill):
            run(f"killed-{kill_at}", kill_at)
        assert run(f"killed-{kill_at}")[:2] == whole


def test_drop_without_anything_to_look_for_is_refused(tmp_path):
    storage = Storage(str(tmp_path))
    corpus, _ = make_scored(storage, 1)
    with pytest.raises(ConfigError, match=r"selection\.contamination is drop, but the run has no text"):
        plan(storage, corpus, SelectionConfig(contamination="drop"))


def test_defaults_are_in_no_id_and_what_steers_is(tmp_path):
    storage = Storage(str(tmp_path))
    corpus, _ = make_scored(storage, 1)

    def name(config):
        return resolve_selection_id(storage, corpus, TEACHER, REFERENCE, config, plan(storage, corpus, config))

    assert SelectionConfig().model_dump(mode="json") == SelectionConfig(duplicates="keep", contamination="report").model_dump(
        mode="json"
    )
    assert "duplicates" not in SelectionConfig().model_dump(mode="json")
    assert name(SelectionConfig(duplicates="keep")) == name(SelectionConfig())
    assert name(SelectionConfig(duplicates="best")).startswith("mean-0.5-duplicates-")


def test_a_grid_tries_copies_kept_and_left_out(tmp_path):
    storage = Storage(str(tmp_path))
    corpus, difference = make_scored(storage, 0)
    config = SelectionConfig(ratio=1.0)
    told = try_selections(
        storage, corpus, TEACHER, REFERENCE, config, "duplicates=keep|best", plan_exclusions=lambda one: plan(storage, corpus, one)
    )
    _, rows = select(storage, corpus, BEST)
    keep, best = told.outcomes
    assert (keep.num_selected, best.num_selected, best.num_shared) == (len(difference), len(rows), len(rows))
    assert best.left_out == {COPY: len(difference) - len(rows)}
