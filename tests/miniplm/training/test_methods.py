"""What each method trains on, and that its choice is in the id of the training."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest

from miniplm.config.run import StudentConfig
from miniplm.derived.sequences import TrainingShard
from miniplm.errors import CorpusError, TrainingError
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.storage.root import Storage
from miniplm.training.data import read_training_shard
from miniplm.training.methods import METHODS, MethodInputs
from miniplm.training.methods.pretrain import draw_sequences
from tests.miniplm.made_corpora import make_corpus
from tests.miniplm.made_trainings import make_selection

ROWS = ([0, 3, 6], [], [8, 1])


@pytest.fixture
def selection(storage: Storage, corpus: CorpusManifest) -> SelectionManifest:
    return make_selection(storage, corpus, ROWS)


def chosen_rows(shards: list[TrainingShard]) -> list[list[int]]:
    return [list(range(shard.num_sequences)) if shard.load_rows is None else shard.load_rows().tolist() for shard in shards]


def test_every_method_of_the_configuration_exists() -> None:
    assert set(get_args(StudentConfig.model_fields["method"].annotation)) <= set(METHODS)


def test_miniplm_trains_on_the_selected_sequences(storage: Storage, corpus: CorpusManifest, selection: SelectionManifest) -> None:
    shards = METHODS["miniplm"].list_shards(storage, MethodInputs(corpus, selection))
    assert chosen_rows([shard for shard in shards if shard.num_sequences]) == [[0, 3, 6], [1, 8]]
    assert sum(shard.num_tokens for shard in shards) == selection.num_selected_tokens
    table = pq.read_table(storage.path("corpora/made/candidate/shard-00002.parquet"))
    token_ids, lengths = read_training_shard(storage, shards[2])
    assert token_ids.tolist() == table["token_ids"][1].as_py() + table["token_ids"][8].as_py()
    assert lengths.sum() == shards[2].num_tokens


def test_reference_trains_on_its_whole_split(storage: Storage, corpus: CorpusManifest) -> None:
    shards = METHODS["reference"].list_shards(storage, MethodInputs(corpus))
    assert chosen_rows(shards) == [list(range(10))]
    assert {shard.entry.split for shard in shards} == {"reference"}


def test_pretrain_draws_until_the_tokens_of_the_selection_are_reached(
    storage: Storage, corpus: CorpusManifest, selection: SelectionManifest
) -> None:
    shards = METHODS["pretrain"].list_shards(storage, MethodInputs(corpus, selection, seed=4))
    lengths = [
        length
        for entry in corpus.split_shards("candidate")
        for length in pq.read_table(storage.path(f"corpora/made/candidate/shard-{entry.shard_index:05d}.parquet"))[
            "num_tokens"
        ].to_pylist()
    ]
    drawn, tokens = [], 0
    for index in np.random.Generator(np.random.PCG64(4)).permutation(len(lengths)):
        if tokens >= selection.num_selected_tokens:
            break
        drawn.append(int(index))
        tokens += lengths[index]
    firsts = [entry.first_sequence_id for entry in corpus.split_shards("candidate")]
    assert sorted(drawn) == [first + row for first, rows in zip(firsts, chosen_rows(shards), strict=True) for row in rows]
    assert [shard.num_sequences for shard in shards] == [len(rows) for rows in chosen_rows(shards)]
    assert sum(shard.num_tokens for shard in shards) == tokens
    assert selection.num_selected_tokens <= tokens < selection.num_selected_tokens + max(lengths)


@pytest.mark.parametrize(("wanted", "num"), [(1, 1), (5, 1), (6, 2), (20, 4), (1_000, 4)])
def test_draw_stops_with_the_sequence_that_reaches_the_tokens(wanted: int, num: int) -> None:
    assert len(draw_sequences(np.full(4, 5, np.int32), wanted, seed=0)) == num


def test_draw_depends_on_its_seed_only() -> None:
    lengths = np.full(50, 5, np.int32)
    assert draw_sequences(lengths, 100, 1).tolist() == draw_sequences(lengths, 100, 1).tolist()
    assert draw_sequences(lengths, 100, 1).tolist() != draw_sequences(lengths, 100, 2).tolist()


def test_descriptions_tell_apart_what_is_trained_on(storage: Storage, corpus: CorpusManifest, selection: SelectionManifest) -> None:
    other_rows = make_selection(storage, corpus, ([1], [2], [3]), "other")
    same_tokens = other_rows.model_copy(update={"num_selected_tokens": selection.num_selected_tokens})
    miniplm, pretrain = METHODS["miniplm"], METHODS["pretrain"]
    assert miniplm.describe_data(MethodInputs(corpus, selection)) != miniplm.describe_data(MethodInputs(corpus, same_tokens))
    # The baseline sees of a selection only how many tokens it has.
    assert pretrain.describe_data(MethodInputs(corpus, selection)) == pretrain.describe_data(MethodInputs(corpus, same_tokens))
    assert pretrain.describe_data(MethodInputs(corpus, selection)) != pretrain.describe_data(MethodInputs(corpus, other_rows))
    assert pretrain.describe_data(MethodInputs(corpus, selection, 0)) != pretrain.describe_data(MethodInputs(corpus, selection, 1))
    assert miniplm.describe_data(MethodInputs(corpus, selection, 0)) == miniplm.describe_data(MethodInputs(corpus, selection, 1))


@pytest.mark.parametrize("method", ["miniplm", "pretrain"])
def test_method_without_a_selection_says_how_to_make_one(corpus: CorpusManifest, method: str) -> None:
    with pytest.raises(TrainingError, match=rf"'{method}' trains on a selection, and there is none; .*miniplm select"):
        METHODS[method].describe_data(MethodInputs(corpus))


def test_selection_of_another_corpus_is_refused(corpus: CorpusManifest, selection: SelectionManifest) -> None:
    with pytest.raises(TrainingError, match="selection s is of corpus other, not made"):
        METHODS["miniplm"].describe_data(MethodInputs(corpus, selection.model_copy(update={"corpus_id": "other"})))


def test_damaged_selection_is_refused(storage: Storage, corpus: CorpusManifest, selection: SelectionManifest) -> None:
    path = Path(storage.path("selections/s/shard-00000.parquet"))
    path.write_bytes(path.read_bytes()[:-1])
    shards = METHODS["miniplm"].list_shards(storage, MethodInputs(corpus, selection))
    with pytest.raises(TrainingError, match=r"shard-00000\.parquet is missing or damaged"):
        read_training_shard(storage, shards[0])


def test_candidate_shard_with_other_counts_is_refused(
    storage: Storage, corpus: CorpusManifest, selection: SelectionManifest
) -> None:
    shards = list(corpus.shards)
    shards[0] = shards[0].model_copy(update={"num_tokens": shards[0].num_tokens + 1})
    with pytest.raises(CorpusError, match="candidate shard 0 of corpus made is damaged"):
        METHODS["pretrain"].list_shards(storage, MethodInputs(corpus.model_copy(update={"shards": tuple(shards)}), selection))


def test_empty_reference_split_is_refused(storage: Storage) -> None:
    corpus = make_corpus(storage, {"candidate": [[[1, 2]]]}, corpus_id="no-reference")
    with pytest.raises(TrainingError, match=r"no sequence in its reference split; give corpus\.splits\.reference"):
        METHODS["reference"].list_shards(storage, MethodInputs(corpus))
