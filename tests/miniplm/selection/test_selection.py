import json
from decimal import Decimal
from fractions import Fraction
from math import floor

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniplm import layout
from miniplm.config.run import SelectionConfig
from miniplm.errors import CorpusError, ScoreJoinError
from miniplm.selection.budgets import count_selected
from miniplm.selection.connection import connect
from miniplm.selection.join import candidate_scores
from miniplm.selection.ranking import find_selection, select_sequences
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import make_corpus, write_scores

TEACHER, REFERENCE = "teacher", "reference"


def make_scored_corpus(storage, teacher, reference, num_scored, sequences_per_shard=4):
    """A corpus of len(teacher) candidates of 3 + (i % 5) tokens, and their scores."""
    sequences = [[1] * (3 + i % 5) for i in range(len(teacher))]
    shards = [sequences[start : start + sequences_per_shard] for start in range(0, len(sequences), sequences_per_shard)]
    corpus = make_corpus(storage, {"candidate": shards, "heldout": [[[1, 2, 3]]]})
    for shard in corpus.split_shards("candidate"):
        rows = slice(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
        write_scores(storage, shard, TEACHER, teacher[rows], num_scored[rows])
        write_scores(storage, shard, REFERENCE, reference[rows], num_scored[rows])
    return corpus


def read_selection(storage, manifest):
    tables = []
    for shard in manifest.shards:
        with storage.open(layout.selection_shard(manifest.selection_id, shard.shard_index)) as file:
            tables.append(pq.read_table(file).to_pandas())
    return pd.concat(tables, ignore_index=True)


def random_scores(num, seed=0):
    rng = np.random.default_rng(seed)
    num_scored = rng.integers(1, 50, num)
    # a coarse grid makes many ties
    return (rng.integers(1, 6, num) * num_scored).astype(float), (rng.integers(1, 6, num) * num_scored).astype(float), num_scored


def test_worked_case_with_ties_broken_by_id(tmp_path):
    storage = Storage(str(tmp_path))
    # difference a token:        1    0    2    1    1   -1
    teacher, reference, num = [4.0, 4.0, 4.0, 6.0, 4.0, 4.0], [6.0, 4.0, 8.0, 9.0, 6.0, 2.0], [2, 2, 2, 3, 2, 2]
    corpus = make_scored_corpus(storage, teacher, reference, num)
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.5))
    rows = read_selection(storage, manifest)
    assert rows["sequence_id"].tolist() == [0, 2, 3]
    assert rows["teacher_nll"].tolist() == [2.0, 2.0, 2.0]
    assert rows["reference_nll"].tolist() == [3.0, 4.0, 3.0]
    assert rows["difference_score"].tolist() == [1.0, 2.0, 1.0]
    assert (manifest.num_candidates, manifest.num_selected, manifest.num_negative, manifest.threshold) == (6, 3, 1, 1.0)


def test_sum_ranks_by_whole_sequences(tmp_path):
    storage = Storage(str(tmp_path))
    # mean difference: 2 and 1; sum of differences: 2 and 10
    corpus = make_scored_corpus(storage, [1.0, 10.0], [3.0, 20.0], [1, 10])
    by_mean = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.5))
    by_sum = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.5, score="sum"))
    assert read_selection(storage, by_mean)["sequence_id"].tolist() == [0]
    rows = read_selection(storage, by_sum)
    assert rows["sequence_id"].tolist() == [1]
    assert rows[["teacher_nll", "reference_nll", "difference_score"]].iloc[0].tolist() == [1.0, 2.0, 10.0]


@pytest.mark.parametrize("score", ["mean", "sum"])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 1.0])
def test_agrees_with_a_full_sort(tmp_path, score, ratio):
    storage = Storage(str(tmp_path))
    teacher, reference, num = random_scores(203)
    corpus = make_scored_corpus(storage, teacher, reference, num, sequences_per_shard=50)
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=ratio, score=score))
    frame = pd.DataFrame({"id": range(203), "t": teacher / num, "r": reference / num})
    frame["d"] = reference - teacher if score == "sum" else frame["r"] - frame["t"]
    kept = frame.sort_values(["d", "id"], ascending=[False, True]).head(floor(Fraction(str(ratio)) * 203)).sort_values("id")
    rows = read_selection(storage, manifest)
    assert rows["sequence_id"].tolist() == kept["id"].tolist()
    assert rows["difference_score"].tolist() == kept["d"].tolist()
    assert sum(domain.num_selected for domain in manifest.domains.values()) == len(kept)
    assert manifest.num_selected_tokens == sum(3 + i % 5 for i in kept["id"])


def test_within_domains_each_gives_its_own_best(tmp_path):
    storage = Storage(str(tmp_path))
    # domains a, b, a, b, ...; differences a: 3, 3, 1, 0 and b: 9, 8, 7: of the whole corpus b alone would be kept
    teacher, reference, num = [0.0] * 7, [3.0, 9.0, 3.0, 8.0, 1.0, 7.0, 0.0], [1] * 7
    corpus = make_scored_corpus(storage, teacher, reference, num)
    config = SelectionConfig(ratio=0.5, within="domain")
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, config)
    assert read_selection(storage, manifest)["sequence_id"].tolist() == [0, 1, 2]
    assert (manifest.within, manifest.threshold, manifest.num_selected) == ("domain", None, 3)
    assert {name: (counts.num_selected, counts.threshold) for name, counts in manifest.domains.items()} == {
        "a": (2, 3.0),
        "b": (1, 9.0),
    }
    of_all = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.5))
    assert read_selection(storage, of_all)["sequence_id"].tolist() == [1, 3, 5]
    assert of_all.selection_id != manifest.selection_id
    assert of_all.threshold == 7.0
    assert {name: counts.threshold for name, counts in of_all.domains.items()} == {"a": None, "b": 7.0}
    assert find_selection(storage, manifest.selection_id) == manifest


@pytest.mark.parametrize("score", ["mean", "sum"])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 1.0])
def test_within_domains_agrees_with_a_full_sort_of_each(tmp_path, score, ratio):
    storage = Storage(str(tmp_path))
    teacher, reference, num = random_scores(203)
    corpus = make_scored_corpus(storage, teacher, reference, num, sequences_per_shard=50)
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=ratio, score=score, within="domain"))
    frame = pd.DataFrame({"id": range(203), "domain": ["ab"[i % 2] for i in range(203)], "t": teacher / num, "r": reference / num})
    frame["d"] = reference - teacher if score == "sum" else frame["r"] - frame["t"]
    ranked = frame.sort_values(["d", "id"], ascending=[False, True])
    kept = sorted(
        number for _, rows in ranked.groupby("domain") for number in rows["id"].head(floor(Fraction(str(ratio)) * len(rows)))
    )
    assert read_selection(storage, manifest)["sequence_id"].tolist() == kept
    assert manifest.num_selected == len(kept)


def test_within_domains_a_ratio_that_keeps_nothing_of_any(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(9))
    with pytest.raises(ScoreJoinError, match=r"ratio 0\.19 of 9 candidate sequences of each domain keeps none"):
        select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.19, within="domain"))


def test_same_inputs_give_the_same_bytes_anywhere(tmp_path):
    contents = []
    for root in ("a", "b"):
        storage = Storage(str(tmp_path / root))
        corpus = make_scored_corpus(storage, *random_scores(300), sequences_per_shard=70)
        manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.4))
        folder = tmp_path / root / layout.selection_folder(manifest.selection_id)
        contents.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 6


def test_found_again_and_made_again_when_damaged(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(20))
    config = SelectionConfig(ratio=0.4)
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, config)
    assert find_selection(storage, manifest.selection_id) == manifest
    path = tmp_path / layout.selection_shard(manifest.selection_id, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert find_selection(storage, manifest.selection_id) is None
    assert select_sequences(storage, corpus, TEACHER, REFERENCE, config) == manifest
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "name", ["data [1]", "it's", "a*b?", "100% #1", "zwölf 中", "new\nline", "back\\slash", "a::b", "~", "{a,b}"]
)
def test_a_folder_name_is_no_pattern(tmp_path, name):
    storage = Storage(str(tmp_path / name))
    corpus = make_scored_corpus(storage, *random_scores(20))
    assert select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.5)).num_selected == 10


@pytest.mark.parametrize("root", ["{}", "memory://{}"])
@pytest.mark.parametrize(
    "name", ["domain=mixed/date=2026-01-01", "sequence_id=7/nll_sum=0", "num_tokens=x", "a=1 [2]/b=it's/c=*", "b\\c"]
)
def test_a_folder_that_looks_like_a_partition_is_no_column(tmp_path, root, name):
    storage = Storage(root.format(f"{tmp_path}/{name}"))
    corpus = make_scored_corpus(storage, *random_scores(20))
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.5, within="domain"))
    plain = Storage(str(tmp_path / "plain"))
    wanted = select_sequences(
        plain, make_scored_corpus(plain, *random_scores(20)), TEACHER, REFERENCE, SelectionConfig(ratio=0.5, within="domain")
    )
    assert manifest == wanted
    assert set(manifest.domains) == {"a", "b"}
    assert read_selection(storage, manifest).equals(read_selection(plain, wanted))


def test_works_in_memory_storage():
    storage = Storage("memory://selection-test")
    corpus = make_scored_corpus(storage, *random_scores(20))
    assert select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.5)).num_selected == 10


@given(st.integers(1, 10**9), st.integers(1, 10**4))
def test_count_is_the_exact_floor(num, ratio_in_ten_thousandths):
    ratio = ratio_in_ten_thousandths / 10**4
    assert count_selected(num, ratio) == floor(Fraction(Decimal(str(ratio))) * num)


def test_count_where_floats_are_off_by_one():
    assert floor(0.29 * 100) == 28
    assert count_selected(100, 0.29) == 29


def test_ratio_that_keeps_nothing(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(5))
    with pytest.raises(ScoreJoinError, match=r"ratio 0\.1 of 5 candidate sequences keeps none"):
        select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.1))


def test_missing_and_broken_shards_are_named_with_their_repair(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(12))
    storage.delete(layout.score_shard_manifest("made", TEACHER, 1))
    path = tmp_path / layout.score_shard("made", REFERENCE, 2)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(
        ScoreJoinError,
        match=r"shard-00001 has no teacher scores, shard-00002 has broken reference scores.*--model teacher --shard 1.*--model reference --shard 2",
    ):
        select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig())


FAULTS = {
    "missing": ([1.0] * 3, None, [1] * 3, r"shard-00001: 1 of 4 sequences have no teacher score \(first: 7\)"),
    "repeated": (
        [1.0] * 5,
        [4, 5, 6, 7, 7],
        [1] * 5,
        r"shard-00001: 1 of 4 sequences have more than one teacher score \(first: 7\)",
    ),
    "foreign": ([1.0] * 5, [4, 5, 6, 7, 99], [1] * 5, r"1 of 0 sequences have a teacher score but are no candidates \(first: 99\)"),
    "nan": (
        [1.0, float("nan"), 1.0, 1.0],
        None,
        [1] * 4,
        r"shard-00001: 1 of 4 sequences have a teacher score that is NULL or not finite \(first: 5\)",
    ),
    "infinite": ([1.0, 1.0, 1.0, float("inf")], None, [1] * 4, r"not finite \(first: 7\)"),
    "absurd": ([1.0, -1e300, 1.0, 1.0], None, [1] * 4, r"teacher score beyond 1e\+100, which no model gives \(first: 5\)"),
    "null": ([1.0, None, 1.0, 1.0], None, [1] * 4, r"NULL or not finite \(first: 5\)"),
    "targets": (
        [1.0] * 4,
        None,
        [1, 2, 1, 1],
        r"another number of scored tokens under the teacher than under the reference \(first: 5\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_join_itself_refuses_what_does_not_match(tmp_path, fault):
    """Also where a manifest agrees with the file, the join checks each sequence."""
    nll_sum, ids, num, message = FAULTS[fault]
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, [1.0] * 12, [2.0] * 12, [1] * 12)
    write_scores(storage, corpus.split_shards("candidate")[1], TEACHER, nll_sum, num, ids)
    with connect(storage) as connection, pytest.raises(ScoreJoinError, match=message + r".*\. Run `miniplm score"):
        candidate_scores(connection, storage, corpus, TEACHER, REFERENCE)


BORDER_FAULTS = {
    "swapped": (
        [0, 1, 2, 4],
        [3, 5, 6, 7],
        r"shard-00000 has broken teacher scores.* shard-00001 has broken .*--shard 0 --shard 1",
    ),
    "moved": ([0, 1, 2], [3, 4, 5, 6, 7], r"shard-00000 has broken teacher scores.* shard-00001 has broken .*--shard 0 --shard 1"),
    "repeated": ([0, 1, 2, 3], [3, 5, 6, 7], r"shard-00001: 1 of 4 sequences have no teacher score \(first: 4\)"),
    "too many": ([0, 1, 2, 3, 4], [4, 5, 6, 7], r"shard-00001: 1 of 4 sequences have more than one teacher score \(first: 4\)"),
    "not there": ([0, 1, 2], [4, 5, 6, 7], r"shard-00000: 1 of 4 sequences have no teacher score \(first: 3\)"),
}


@pytest.mark.parametrize("fault", BORDER_FAULTS)
def test_ids_that_are_wrong_at_the_border_of_two_shards(tmp_path, fault):
    *ids, message = BORDER_FAULTS[fault]
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, [1.0] * 12, [2.0] * 12, [1] * 12)
    for shard, sequence_ids in zip(corpus.split_shards("candidate"), ids, strict=False):
        write_scores(storage, shard, TEACHER, [1.0] * len(sequence_ids), [1] * len(sequence_ids), sequence_ids)
    with pytest.raises(ScoreJoinError, match=message + r".*"):
        select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig())
    assert storage.list_names("selections") == []


@pytest.mark.parametrize("within", ["corpus", "domain"])
def test_rows_in_any_order_and_shards_without_rows_select_the_same(tmp_path, within):
    teacher, reference, num = random_scores(12_000)
    selections = []
    for name in ("in order", "shuffled"):
        storage = Storage(str(tmp_path / name))
        corpus = make_corpus(storage, {"candidate": [[[1, 2]] * 5000, [], [[1, 2]] * 7000]})
        for shard in corpus.split_shards("candidate"):
            ids = np.arange(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
            if name == "shuffled":
                ids = np.random.default_rng(1).permutation(ids)
            write_scores(storage, shard, TEACHER, teacher[ids], num[ids], ids)
            write_scores(storage, shard, REFERENCE, reference[ids], num[ids], ids)
        selection = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(ratio=0.3, within=within))
        with connect(storage) as connection:
            candidate_scores(connection, storage, corpus, TEACHER, REFERENCE)
            # What DuckDB may push below a join by position, it must not: the view agrees with itself as a table.
            connection.execute("CREATE TEMP TABLE wanted AS SELECT * FROM candidate_scores")
            for query in (
                "SELECT * FROM {} WHERE domain = 'b' AND sequence_id > 4000 ORDER BY difference_score DESC, sequence_id LIMIT 3",
                "SELECT * FROM {} ORDER BY sequence_id DESC LIMIT 3",
                "SELECT * FROM {} JOIN (SELECT unnest([3, 4999, 5000, 11999]) AS sequence_id) USING (sequence_id) ORDER BY ALL",
            ):
                assert (
                    connection.execute(query.format("candidate_scores")).fetchall()
                    == connection.execute(query.format("wanted")).fetchall()
                )
            rows = connection.execute("SELECT sequence_id, difference_score FROM wanted ORDER BY 1").fetchall()
        selections.append((read_selection(storage, selection), selection.domains, rows))
    assert selections[0][0].equals(selections[1][0])
    assert selections[0][1:] == selections[1][1:]
    assert len(selections[0][0]) == 3600
    assert [row[1] for row in selections[0][2]] == (reference / num - teacher / num).tolist()


def test_interrupted_and_made_again_gives_the_same_bytes(tmp_path):
    class Interrupt(BaseException):
        pass

    def interrupt_at(key):
        def interrupt(progress):
            if progress.key == key and progress.done == 2:
                raise Interrupt

        return interrupt

    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(600), sequences_per_shard=100)
    config = SelectionConfig(ratio=0.4, within="domain")
    contents = []
    for key in ("read scores", "select"):
        with pytest.raises(Interrupt):
            select_sequences(storage, corpus, TEACHER, REFERENCE, config, interrupt_at(key))
    selection = select_sequences(storage, corpus, TEACHER, REFERENCE, config)
    for root in ("interrupted", "whole"):
        contents.append(
            {
                name: storage.read_bytes(f"selections/{selection.selection_id}/{name}")
                for name in storage.list_names(f"selections/{selection.selection_id}")
            }
        )
        if root == "interrupted":
            storage.delete("selections")
            assert select_sequences(storage, corpus, TEACHER, REFERENCE, config) == selection
    assert contents[0] == contents[1]
    assert len(contents[0]) == 7


def test_scores_that_change_between_the_two_passes_are_refused(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(600), sequences_per_shard=100)
    path = tmp_path / layout.score_shard("made", TEACHER, 5)

    def change(progress):
        if progress.key == "read scores" and progress.done == progress.total:
            path.write_bytes(path.read_bytes()[:-1] + b"x")

    with pytest.raises(ScoreJoinError, match=r"shard-00005 has broken teacher scores: .*digests differ"):
        select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig(), change)
    assert find_selection(storage, storage.list_names("selections")[0]) is None


def test_a_candidate_shard_that_holds_something_else_is_told_with_its_repair(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(12))
    path = tmp_path / layout.corpus_shard("made", "candidate", 1)
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(CorpusError, match=r"hold 11 sequences .* manifest says 12 .*miniplm status CONFIG"):
        select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorpusError, match=r"cannot be read .*miniplm status CONFIG"):
        select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig())


def test_manifest_has_no_time_in_it(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_scored_corpus(storage, *random_scores(8))
    manifest = select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig())
    content = json.loads((tmp_path / layout.selection_manifest(manifest.selection_id)).read_text())
    assert not {"seconds", "created", "started_at", "host"} & set(content)
