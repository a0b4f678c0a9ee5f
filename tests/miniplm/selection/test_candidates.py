import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.config.run import SelectionConfig
from miniplm.errors import CorpusError, ScoreJoinError
from miniplm.scoring.shards import read_scores
from miniplm.selection.candidates import join_scores, read_again, read_sequences
from miniplm.selection.join import find_manifests
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import make_corpus, write_scores

TEACHER, REFERENCE = "teacher", "reference"


def make_one_shard(storage, num_sequences=6):
    """Scores 10, 11, ... of the teacher and 20, 22, ... of the reference, over 2 tokens each."""
    corpus = make_corpus(storage, {"candidate": [[[1, 2, 3]] * num_sequences]})
    (shard,) = corpus.split_shards("candidate")
    rows = np.arange(num_sequences)
    write_scores(storage, shard, TEACHER, 10.0 + rows, [2] * num_sequences)
    write_scores(storage, shard, REFERENCE, 20.0 + 2 * rows, [2] * num_sequences)
    return corpus, shard


def test_scores_read_again_are_those_that_were_proven(tmp_path):
    storage = Storage(str(tmp_path))
    corpus, shard = make_one_shard(storage)
    ((teacher, reference),) = find_manifests(storage, corpus, TEACHER, REFERENCE)

    def read(shard, manifest):
        return read_scores(storage, shard, manifest)

    proven, is_in_place = join_scores(shard, teacher, reference, read)
    again = read_again(shard, teacher, reference, read)
    assert is_in_place
    assert again.difference_score("mean").tolist() == [5.0, 5.5, 6.0, 6.5, 7.0, 7.5]
    for scores in (proven, again):
        assert scores.num_scored_tokens.tolist() == [2] * 6
        assert scores.teacher_nll.tolist() == [5.0, 5.5, 6.0, 6.5, 7.0, 7.5]
        assert scores.reference_nll.tolist() == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    path = tmp_path / layout.score_shard("made", REFERENCE, 0)
    path.write_bytes(path.read_bytes().replace(np.float64(20.0).tobytes(), np.float64(21.0).tobytes()))
    with pytest.raises(ScoreJoinError, match=r"shard-00000 has broken reference scores: .*digests differ"):
        read_again(shard, teacher, reference, read)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [({"sequence_id": pa.string()}, "does not hold the sequences"), ({"num_tokens": pa.string()}, "does not hold the sequences")],
)
def test_ids_and_lengths_that_are_no_whole_numbers_are_refused(tmp_path, kinds, message):
    storage = Storage(str(tmp_path))
    corpus, shard = make_one_shard(storage)
    path = tmp_path / layout.corpus_shard("made", "candidate", 0)
    table = pq.read_table(path)
    for name, kind in kinds.items():
        table = table.set_column(table.schema.names.index(name), name, table[name].cast(kind))
    pq.write_table(table, path)
    with pytest.raises(CorpusError, match=message):
        read_sequences(storage, shard)
    with pytest.raises(CorpusError, match=r"miniplm status CONFIG"):
        select_sequences(storage, corpus, TEACHER, REFERENCE, SelectionConfig())


def test_sequences_of_several_row_groups_keep_their_order_and_domains(tmp_path):
    storage = Storage(str(tmp_path))
    _, shard = make_one_shard(storage)
    path = tmp_path / layout.corpus_shard("made", "candidate", 0)
    table = pq.read_table(path)
    names = ["b", "a", "a", "c", "b", "a"]
    table = table.set_column(table.schema.names.index("domain"), "domain", pa.array(names).dictionary_encode())
    pq.write_table(table, path, row_group_size=2)
    sequences = read_sequences(storage, shard)
    assert [sequences.domain_names[place] for place in sequences.domains] == names
    assert sequences.num_tokens.tolist() == [3] * 6
    assert sequences.is_in_place
