import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.config.proxy import ProxyConfig
from miniplm.config.run import ScoringConfig, config_as_dict
from miniplm.config.selection import SelectionConfig
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.errors import ScoreJoinError
from miniplm.proxy.fitting import fit_proxy
from miniplm.proxy.identity import find_proxy
from miniplm.proxy.labels import find_labelled, list_ids
from miniplm.proxy.measuring import measure_proxy, tell_proxy
from miniplm.proxy.prediction import open_proxy, predict_shard
from miniplm.records.manifests import is_proxy
from miniplm.records.run import RunRecord
from miniplm.selection.agreement import correlate_ranks
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage
from tests.miniplm.proxy.made_labels import REFERENCE, TEACHER, difference_of, make_proxy, score

CONFIG = ProxyConfig(share=0.3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    proxy = make_proxy(Storage(str(tmp_path_factory.mktemp("proxy"))), CONFIG, noise=0.1)
    proxy.predict()
    return proxy


def read_scores(storage, shard, model_id):
    return pq.read_table(storage.path(layout.score_shard(shard.corpus_id, model_id, shard.shard_index)))


def test_unlabelled_rows_have_the_predicted_difference_labelled_ones_the_teachers_nll(made):
    scorer = open_proxy(made.storage, made.manifest)
    for shard in made.corpus.split_shards("candidate"):
        sequences = read_token_ids(read_shard(made.storage, shard))
        predicted, reference = (
            read_scores(made.storage, shard, model_id) for model_id in (made.manifest.proxy_id, REFERENCE.model_id)
        )
        counts = reference["num_scored_tokens"].to_numpy()
        assert predicted["num_scored_tokens"].to_numpy().tolist() == counts.tolist()
        difference = (reference["nll_sum"].to_numpy() - predicted["nll_sum"].to_numpy()) / counts
        labelled = find_labelled(list_ids(shard), CONFIG.share, CONFIG.seed)
        own = scorer.predict(sequences, reference["nll_sum"].to_numpy() / counts)
        assert difference[~labelled] == pytest.approx(own[~labelled])
        truth = np.array([difference_of(tokens, 0.1) for tokens in sequences])
        assert difference[labelled] == pytest.approx(truth[labelled])


def test_what_is_measured_is_how_well_the_rest_is_predicted(made):
    """The held-out predictions of labels, against those of sequences that the proxy never saw and whose truth is known here."""
    measured = measure_proxy(made.storage, made.manifest, SelectionConfig(ratio=0.5, score="mean", within="corpus"))
    predicted, truth = [], []
    scorer = open_proxy(made.storage, made.manifest)
    for shard in made.corpus.split_shards("candidate"):
        rest = ~find_labelled(list_ids(shard), CONFIG.share, CONFIG.seed)
        sequences = read_token_ids(read_shard(made.storage, shard))
        reference = read_scores(made.storage, shard, REFERENCE.model_id)
        nll = reference["nll_sum"].to_numpy() / reference["num_scored_tokens"].to_numpy()
        predicted += scorer.predict(sequences, nll)[rest].tolist()
        truth += [difference_of(tokens, 0.1) for tokens, is_rest in zip(sequences, rest, strict=True) if is_rest]
    spearman = correlate_ranks(np.array(predicted), np.array(truth))
    assert measured.spearman == pytest.approx(spearman, abs=0.05)
    assert measured.spearman > 0.85
    assert measured.passes(0.75)
    assert measured.chance == pytest.approx(0.5, abs=0.01)


def test_ids_and_records_say_that_scores_were_predicted(made):
    manifest, shard = made.manifest, made.corpus.split_shards("candidate")[0]
    assert is_proxy(manifest.proxy_id)
    assert not is_proxy("proxy-linear-135m-float32-0123456789ab")
    record = made.storage.read_json(layout.score_shard_manifest(shard.corpus_id, manifest.proxy_id, 0))
    assert record["engine"] == {
        "proxy": "linear",
        "labels": made.labels.corpus_id,
        "num_labels": manifest.num_labels,
        "teacher": "teacher",
    }
    score(made.storage, made.corpus, TEACHER, noise=0.1)
    config = SelectionConfig()
    full = select_sequences(made.storage, made.corpus, TEACHER.model_id, REFERENCE.model_id, config)
    by_proxy = select_sequences(made.storage, made.corpus, manifest.proxy_id, REFERENCE.model_id, config)
    assert full.selection_id != by_proxy.selection_id
    assert (by_proxy.teacher_id, full.teacher_id) == (manifest.proxy_id, "teacher")
    assert by_proxy.num_selected == full.num_selected == 300


def test_a_fit_is_found_again_and_made_again_to_the_same_bytes(made):
    storage, manifest = made.storage, made.manifest
    arguments = (storage, made.corpus, made.labels, CONFIG, TEACHER, REFERENCE)
    assert fit_proxy(*arguments) == manifest
    weights = storage.read_bytes(layout.proxy_weights(manifest.proxy_id))
    storage.write_bytes(layout.proxy_weights(manifest.proxy_id), weights[:-8])
    assert find_proxy(storage, manifest.proxy_id) is None
    again = fit_proxy(*arguments)
    assert again.model_copy(update={"seconds": manifest.seconds}) == manifest
    assert storage.read_bytes(layout.proxy_weights(manifest.proxy_id)) == weights


def test_noise_is_no_better_than_chance_whatever_the_ratio(storage):
    made = make_proxy(storage, CONFIG, informative=False)
    for ratio in (0.3, 0.5, 0.9):
        fidelity = measure_proxy(storage, made.manifest, SelectionConfig(ratio=ratio, score="mean", within="corpus"))
        assert not fidelity.beats_chance, ratio
        assert not fidelity.passes(0.0)
    assert measure_proxy(storage, made.manifest, SelectionConfig(ratio=0.9, score="mean", within="corpus")).overlap > 0.8
    assert measure_proxy(storage, made.manifest, SelectionConfig(ratio=1.0, score="mean", within="corpus")).passes(1.0)


def test_each_domain_is_measured_by_its_own_best(made):
    fidelity = measure_proxy(made.storage, made.manifest, SelectionConfig(ratio=0.5, score="sum", within="domain"))
    assert fidelity.num_selected in (fidelity.num_sequences // 2, fidelity.num_sequences // 2 - 1)


def test_other_rules_are_applied_to_the_labels_by_their_ids_in_the_corpus(made):
    plain = measure_proxy(made.storage, made.manifest, SelectionConfig())
    assert measure_proxy(made.storage, made.manifest, SelectionConfig(score="difference_score")) == plain
    half = made.corpus.split_counts("candidate").num_tokens // 2
    budget = measure_proxy(made.storage, made.manifest, SelectionConfig(ratio=None, tokens=half))
    assert (budget.num_selected, budget.overlap) == (
        pytest.approx(plain.num_selected, rel=0.1),
        pytest.approx(plain.overlap, abs=0.05),
    )
    even = SelectionConfig(ratio=1, where="sequence_id % 2 = 0")
    labelled = [find_labelled(list_ids(shard), CONFIG.share, CONFIG.seed)[::2] for shard in made.corpus.split_shards("candidate")]
    assert measure_proxy(made.storage, made.manifest, even).num_selected == sum(int(rows.sum()) for rows in labelled)


def test_without_a_proxy_records_and_configurations_say_nothing_of_one():
    assert "proxy" not in config_as_dict(ScoringConfig())
    assert "proxy" not in TEACHER.as_json()
    record = RunRecord(run_name="r", config={"scoring": {}}, teacher=TEACHER, reference=REFERENCE, started_at="")
    assert "proxy" not in record.as_json()
    assert record.scorer_ids == ("teacher", "reference")


def test_a_run_that_is_to_have_a_proxy_joins_nothing_before():
    config = {"scoring": config_as_dict(ScoringConfig(proxy=CONFIG))}
    record = RunRecord(run_name="r", config=config, teacher=TEACHER, reference=REFERENCE, started_at="")
    assert record.scorer_ids is None
    entry = TEACHER.model_copy(update={"model_id": "proxy-linear-0123456789ab", "proxy": "linear"})
    assert record.model_copy(update={"proxy": entry}).scorer_ids == (entry.model_id, "reference")


def test_missing_scores_of_the_reference_are_named(made):
    shard = made.corpus.split_shards("candidate")[1]
    manifest = layout.score_shard_manifest(shard.corpus_id, REFERENCE.model_id, 1)
    content = made.storage.read_bytes(manifest)
    made.storage.delete(manifest)
    try:
        with pytest.raises(ScoreJoinError, match="candidate shard 1 of corpus made has no verified scores of the reference"):
            predict_shard(made.storage, made.corpus, shard, made.manifest.entry, open_proxy(made.storage, made.manifest))
        with pytest.raises(ScoreJoinError, match="not all scored by teacher and reference"):
            fit_proxy(made.storage, made.corpus, made.labels, CONFIG, TEACHER, REFERENCE)
    finally:
        made.storage.write_bytes(manifest, content)


def test_what_is_gone_of_the_labels_is_told_where_a_selection_is_shown(made, tmp_path):
    shutil.copytree(made.storage.root, tmp_path / "data")
    storage, rule = Storage(str(tmp_path / "data")), SelectionConfig(score="difference_score + 1")
    assert tell_proxy(storage, made.manifest, rule) == (measure_proxy(storage, made.manifest, rule), "")
    shutil.rmtree(tmp_path / "data" / layout.corpus_folder(made.labels.corpus_id) / "candidate")
    fidelity, problem = tell_proxy(storage, made.manifest, rule)
    assert fidelity is None
    assert re.search(r"labels-.*/candidate/shard-00000.parquet cannot be read .* run `miniplm prepare CONFIG`", problem)
