"""The fidelity gate: what dtypes change against float32, kept with the scores, and refused where it is too much."""

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from miniplm import layout
from miniplm.config.run import RunConfig, SelectionConfig
from miniplm.corpus.reader import read_shard
from miniplm.errors import ConfigError, CorpusError, FidelityError
from miniplm.models.identity import identify_model
from miniplm.models.loading import load_model
from miniplm.records.calibrations import Calibration, CalibrationScores
from miniplm.records.manifests import CorpusManifest, DocumentScoresEntry, DomainCounts, TokenizerEntry
from miniplm.run.fidelity_gate import check_fidelity, judge_fidelity
from miniplm.run.plan import RunPlan
from miniplm.scoring.documents import DOCUMENT_SCHEMA
from miniplm.scoring.engine import Scorer
from miniplm.selection.agreement import correlate_ranks
from miniplm.selection.fidelity import calibrate, find_calibration, measure_fidelity
from miniplm.selection.ranking import resolve_selection_id, select_sequences
from miniplm.storage.root import Storage, digest_file
from tests.miniplm.made_corpora import make_corpus, write_scores
from tests.miniplm.made_models import make_llama, save_model

CPU = torch.device("cpu")
# By the published rule nothing is read.
NOWHERE = Storage("memory://nowhere")
CORPUS = CorpusManifest(
    corpus_id="made",
    tokenizer=TokenizerEntry(name="made", digest="d", vocab_size=9, eos_token="<eos>", eos_token_id=0),
    sequence_length=8,
    sources=(),
    num_records=0,
    rejected={},
    domains={"candidate": {"a": DomainCounts(num_documents=8, num_bytes=80, num_tokens=80, num_sequences=8)}},
    shards=(),
    versions={},
)


def make_calibration(teacher_nll, exact_teacher_nll, reference_nll, counts, domains=None):
    def scores(nll, exact):
        return CalibrationScores(
            model_id="m", dtype="fp8", nll=nll, float32_nll=exact, tokens_per_second=2.0, float32_tokens_per_second=1.0
        )

    return Calibration(
        corpus_id="made",
        within="corpus" if domains is None else "domain",
        sequence_ids=range(len(counts)),
        domains=domains or ["d"] * len(counts),
        num_scored_tokens=counts,
        teacher=scores(teacher_nll, exact_teacher_nll),
        reference=scores(reference_nll, reference_nll),
        device="cpu",
        versions={},
    )


def make_plan(within="corpus", ratio=0.5, unit="sequence", **scoring):
    config = RunConfig.model_validate(
        {
            "name": "c",
            "corpus": {"sources": [{"path": "x", "domain_name": "d"}], "tokenizer": "t"},
            "teacher": {"model": "t"},
            "reference": {"model": "r"},
            "selection": {"within": within, "ratio": ratio, "unit": unit},
            "scoring": scoring,
        }
    )
    return RunPlan.of(config)


def test_a_worked_case():
    """Difference scores 4 3 2 1 exactly, 4 1 2 3 in fp8: of the best two one stays, ranks correlate by 0.2."""
    calibration = make_calibration([0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 1.0, 2.0], [4.0, 3.0, 3.0, 3.0], [1, 1, 1, 3])
    fidelity = measure_fidelity(NOWHERE, CORPUS, calibration, SelectionConfig(ratio=0.5))
    assert (fidelity.num_selected, fidelity.overlap) == (2, 0.5)
    assert fidelity.spearman == pytest.approx(0.2)
    assert fidelity.teacher_bias == pytest.approx((2.0 + 3 * -2.0) / 6)
    assert fidelity.reference_bias == 0
    # sums: exactly 4 3 2 3, in fp8 4 1 2 9; the tie at 3 goes to the smaller id
    assert measure_fidelity(NOWHERE, CORPUS, calibration, SelectionConfig(score="sum")).overlap == 0.5


def test_a_worked_case_within_domains():
    """Exactly a: 9 8 7, b: 3 2 1 0; in fp8 a: 9 8 7, b: 0 1 2 3. Of all, half is a and the best of b; of each domain 1 of 3 and 2 of 4."""
    exact, teacher = [0.0] * 7, [0.0, 0.0, 0.0, 3.0, 1.0, -1.0, -3.0]
    reference, domains = [9.0, 8.0, 7.0, 3.0, 2.0, 1.0, 0.0], ["a", "a", "a", "b", "b", "b", "b"]
    whole = measure_fidelity(NOWHERE, CORPUS, make_calibration(teacher, exact, reference, [1] * 7), SelectionConfig(ratio=0.5))
    assert (whole.num_selected, whole.overlap) == (3, 1.0)
    by_domain = measure_fidelity(
        NOWHERE, CORPUS, make_calibration(teacher, exact, reference, [1] * 7, domains), SelectionConfig(ratio=0.5, within="domain")
    )
    # Of b float32 selects the first two, fp8 the last two: a's one is all that both select.
    assert (by_domain.num_selected, by_domain.overlap) == (3, pytest.approx(1 / 3))
    calibration = make_calibration(teacher, exact, reference, [1] * 7, domains)
    with pytest.raises(
        FidelityError, match=r"of the 3 sequences that float32 scores select from 7, the best of each domain, these .*33\.3%"
    ):
        judge_fidelity(NOWHERE, CORPUS, calibration, make_plan("domain"))


@pytest.mark.parametrize("score", ["mean", "sum"])
def test_what_is_measured_within_domains_is_what_the_selection_keeps(tmp_path, score):
    """The oracle is the selection itself, over scores in the one dtype and in the other."""
    storage, rng = Storage(str(tmp_path)), np.random.default_rng(3)
    names = ["a", "b", "c", "c", "c", "a"] * 5
    corpus = make_corpus(storage, {"candidate": [[rng.integers(1, 100, rng.integers(4, 9)) for _ in names]]}, domains=names)
    (shard,) = corpus.split_shards("candidate")
    counts = np.array(read_shard(storage, shard, columns=["num_tokens"])["num_tokens"]) - 1
    nll = {name: rng.integers(0, 8, len(names)) / 4 for name in ("teacher", "exact-teacher", "reference")}
    for name, values in nll.items():
        write_scores(storage, shard, name, (values * counts).tolist(), counts.tolist())
    config = SelectionConfig(ratio=0.4, score=score, within="domain")
    kept = [
        {
            sequence_id
            for entry in select_sequences(storage, corpus, teacher, "reference", config).shards
            for sequence_id in pq.read_table(
                storage.path(
                    layout.selection_shard(resolve_selection_id(storage, corpus, teacher, "reference", config), entry.shard_index)
                )
            )["sequence_id"].to_pylist()
        }
        for teacher in ("teacher", "exact-teacher")
    ]
    calibration = make_calibration(nll["teacher"], nll["exact-teacher"], nll["reference"], counts, names)
    fidelity = measure_fidelity(storage, corpus, calibration, SelectionConfig(ratio=0.4, score=score, within="domain"))
    assert fidelity.num_selected == len(kept[0]) == 4 + 2 + 6
    assert fidelity.overlap == len(kept[0] & kept[1]) / len(kept[0]) < 1


def test_too_few_sequences_to_select_any_are_no_proof():
    calibration = make_calibration([1.0] * 3, [1.0] * 3, [2.0] * 3, [1] * 3, ["a", "b", "c"])
    with pytest.raises(
        FidelityError, match=r"of 3 sequences selection.ratio 0.5 of each domain selects none, so that nothing was measured"
    ):
        judge_fidelity(NOWHERE, CORPUS, calibration, make_plan("domain", min_overlap=0))


def test_a_calibration_of_one_rule_does_not_open_the_gate_for_the_other(made, tmp_path):
    storage, corpus, run = made
    entries = [identify_model(tmp_path / name, name, "fp8") for name in ("teacher", "reference")]
    ids = [entry.model_id for entry in entries]
    run("fp8", 75)
    check_fidelity(storage, corpus, *entries, make_plan(min_overlap=0))
    with pytest.raises(FidelityError, match="on this device yet"):
        check_fidelity(storage, corpus, *entries, make_plan("domain", min_overlap=0))
    *_, by_domain = run("fp8", 75, "domain")
    assert (by_domain.within, set(by_domain.domains)) == ("domain", {"a", "b"})
    check_fidelity(storage, corpus, *entries, make_plan("domain", min_overlap=0))
    # Both are kept; one that lies in the other's place is none.
    assert [find_calibration(storage, corpus.corpus_id, *ids, within).within for within in ("corpus", "domain")] == [
        "corpus",
        "domain",
    ]
    storage.write_json(layout.calibration(corpus.corpus_id, *ids, "corpus"), by_domain.as_json())
    assert find_calibration(storage, corpus.corpus_id, *ids, "corpus") is None


RULES = [
    {"tokens": 1000},
    {"ratio": 0.3, "score": "difference_score * num_tokens + edu", "signals": "sequence_id"},
    {"ratio": 0.5, "score": "edu + difference_score", "signals": "document_id", "where": "teacher_nll < 1.6 OR domain = 'b'"},
    {"ratio": 0.4, "mix": {"a": 0.2, "b": {"at_least": 0.5}}},
    {"tokens": 700, "within": "domain", "temperature": 0.3},
    {"threshold": 0.5, "where": "num_tokens > 5"},
    {"tokens": 2500, "repetitions": 3, "score": "sum"},
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Candidates of three domains with scores in two dtypes, and a calibration of all of them, in shards of 20."""
    folder, rng = tmp_path_factory.mktemp("measured"), np.random.default_rng(5)
    storage, names = Storage(str(folder)), ["a", "b", "c", "c", "b"]
    texts = [[rng.integers(1, 100, rng.integers(4, 30)) for _ in range(20)] for _ in range(6)]
    documents = {}
    for number, text in enumerate(text for shard in texts for text in shard):
        documents[number] = [2 * number]
        if len(text) > 9:
            text[7], documents[number] = 0, [2 * number, 2 * number + 1]
    corpus = make_corpus(storage, {"candidate": texts}, domains=names, document_ids=documents)
    rows = [read_shard(storage, shard, ["num_tokens", "domain"]).to_pandas() for shard in corpus.split_shards("candidate")]
    table = pd.concat(rows, ignore_index=True)
    counts = table["num_tokens"].to_numpy() - np.array([len(documents[one]) for one in range(len(table))])
    nll = {"exact": rng.normal(2, 0.5, len(table)), "reference": rng.normal(2.4, 0.5, len(table))}
    nll["teacher"] = nll["exact"] + rng.normal(0, 0.2, len(table))
    for shard in corpus.split_shards("candidate"):
        own = slice(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)
        for name, values in nll.items():
            write_scores(storage, shard, name, (values * counts)[own].tolist(), counts[own].tolist())
            write_parts(storage, shard, name, [texts[shard.shard_index][row] for row in range(20)], documents)
    for key, ids in (("sequence_id", range(len(table))), ("document_id", range(2 * len(table)))):
        pq.write_table(pa.table({key: ids, "edu": [one % 7 / 5 for one in ids]}), folder / f"{key}.parquet")
    calibration = make_calibration(nll["teacher"], nll["exact"], nll["reference"], counts, table["domain"].tolist())
    return storage, corpus, calibration, folder


def write_parts(storage, shard, model_id, texts, documents):
    """Scores of documents: only who has how many scored tokens where is looked at."""
    rows = []
    for row, text in enumerate(texts):
        one = shard.first_sequence_id + row
        sizes = [7, len(text) - 9] if len(documents[one]) == 2 else [len(text) - 1]
        rows += [(document, one, size, 0.0) for document, size in zip(documents[one], sizes, strict=True)]
    path = storage.path(layout.document_scores(shard.corpus_id, model_id, shard.shard_index))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    columns = [pa.array(column, kind.type) for column, kind in zip(zip(*rows, strict=True), DOCUMENT_SCHEMA, strict=True)]
    pq.write_table(pa.Table.from_arrays(columns, schema=DOCUMENT_SCHEMA), path)
    name = layout.score_shard_manifest(shard.corpus_id, model_id, shard.shard_index)
    entry = DocumentScoresEntry(digest=digest_file(path), num_bytes=os.path.getsize(path), num_rows=len(rows), num_unattributed=0)
    storage.write_json(name, storage.read_json(name) | {"documents": entry.as_json()})


@pytest.mark.parametrize("rule", RULES)
def test_a_calibration_of_all_measures_what_the_selections_share(measured, rule):
    """The oracle is the selection itself, by the scores of either dtype."""
    storage, corpus, calibration, folder = measured
    if key := rule.get("signals"):
        rule = rule | {"signals": [{"name": "edu", "path": str(folder / f"{key}.parquet"), "key": key, "column": "edu"}]}
    config = SelectionConfig.model_validate(rule)
    uses = []
    for teacher in ("exact", "teacher"):
        kept = select_sequences(storage, corpus, teacher, "reference", config)
        tables = [
            pq.read_table(storage.path(layout.selection_shard(kept.selection_id, entry.shard_index))).to_pandas()
            for entry in kept.shards
        ]
        rows = pd.concat(tables)
        uses.append(dict(zip(rows["sequence_id"], rows.get("repetitions", pd.Series(1, rows.index)), strict=True)))
    shared = sum(min(number, uses[1].get(one, 0)) for one, number in uses[0].items())
    most = max(sum(each.values()) for each in uses)
    fidelity = measure_fidelity(storage, corpus, calibration, config)
    assert (fidelity.num_selected, fidelity.overlap) == (most, pytest.approx(shared / most))
    assert 0.5 < fidelity.overlap < 1


def test_a_budget_is_that_of_the_corpus_whatever_the_sample(measured):
    """Of every third sequence a budget keeps about the share that it keeps of all."""
    storage, corpus, calibration, _ = measured
    few = calibration.model_copy(
        update={name: getattr(calibration, name)[::3] for name in ("sequence_ids", "domains", "num_scored_tokens")}
        | {
            role: getattr(calibration, role).model_copy(
                update={name: getattr(getattr(calibration, role), name)[::3] for name in ("nll", "float32_nll")}
            )
            for role in ("teacher", "reference")
        }
    )
    total = corpus.split_counts("candidate").num_tokens
    for rule in (
        {"tokens": total},
        {"tokens": total, "where": "num_scored_tokens < 1000"},
        {"tokens": 436 + 749, "mix": {"c": 0.0}},
    ):
        fidelity = measure_fidelity(storage, corpus, few, SelectionConfig.model_validate(rule))
        assert fidelity.num_selected == (24 if "mix" in rule else 40)
        older = few.model_copy(update={"domains": ()})  # made before domains were noted
        assert measure_fidelity(storage, corpus, older, SelectionConfig.model_validate(rule)) == fidelity
    assert 12 < measure_fidelity(storage, corpus, few, SelectionConfig(ratio=None, tokens=total // 2)).num_selected < 28
    with pytest.raises(ConfigError, match=r"of the 40 sequences that the rule is measured on: selection\.mix .* Measure on more"):
        measure_fidelity(storage, corpus, few, SelectionConfig(ratio=0.9, mix={"a": 0.5}))
    assert measure_fidelity(storage, corpus, few, SelectionConfig(ratio=None, threshold=99.0)).num_selected == 0
    assert measure_fidelity(storage, corpus, few, SelectionConfig(where="num_tokens > 99")).num_selected == 0


def test_documents_are_refused_by_name_and_no_other_rules_calibration_is_theirs(made, tmp_path):
    storage, corpus, _ = made
    entries = [identify_model(tmp_path / name, name, "fp8") for name in ("teacher", "reference")]
    other = make_calibration([9.0, 0.0], [0.0, 9.0], [9.0, 9.0], [1, 1])
    storage.write_json(layout.calibration(corpus.corpus_id, *(entry.model_id for entry in entries), "corpus"), other.as_json())
    plan = make_plan(min_overlap=0, unit="document")
    with pytest.raises(ConfigError, match=r"selection.unit is document, .* Score in bfloat16 or float32"):
        check_fidelity(storage, corpus, *entries, plan)
    exact = [entry.model_copy(update={"dtype": "bfloat16"}) for entry in entries]
    check_fidelity(storage, corpus, *exact, make_plan(min_overlap=1, unit="document"))
    with pytest.raises(FidelityError, match=r"select 0\.0%"):
        check_fidelity(storage, corpus, *exact, make_plan(min_overlap=1))


def test_rank_correlation_agrees_with_pandas():
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 20, 200).astype(float), rng.normal(size=200)
    right[:50] = left[:50]
    assert correlate_ranks(left, right) == pytest.approx(pd.Series(left).rank().corr(pd.Series(right).rank()))


@pytest.fixture
def made(tmp_path):
    storage = Storage(str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    corpus = make_corpus(storage, {"candidate": [[rng.integers(1, 100, 30) for _ in range(25)] for _ in range(3)]})
    folders = [save_model(make_llama(seed), tmp_path / name) for seed, name in enumerate(("teacher", "reference"))]

    def run(dtype, num_sequences, within="corpus"):
        teacher, reference = (identify_model(folder, str(folder), dtype) for folder in folders)

        def open_scorer(entry):
            folder = folders[0] if entry.source == teacher.source else folders[1]
            return Scorer(load_model(folder, entry.dtype, CPU), 256)

        return teacher, reference, calibrate(storage, corpus, teacher, reference, num_sequences, open_scorer, within=within)

    return storage, corpus, run


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_a_calibration_is_kept_and_says_what_the_dtype_changes(made, dtype):
    storage, corpus, run = made
    teacher, reference, calibration = run(dtype, 40)
    assert find_calibration(storage, corpus.corpus_id, teacher.model_id, reference.model_id, "corpus") == calibration
    assert len(set(calibration.sequence_ids)) == 40
    assert {sequence_id // 25 for sequence_id in calibration.sequence_ids} == {0, 1, 2}
    fidelity = measure_fidelity(NOWHERE, CORPUS, calibration, SelectionConfig(ratio=0.5))
    assert 0 < abs(fidelity.teacher_bias) < 0.1
    assert 0.97 < fidelity.spearman < 1
    judge_fidelity(storage, corpus, calibration, make_plan(min_overlap=fidelity.overlap))


def test_a_dtype_under_the_least_overlap_is_refused(made):
    storage, corpus, run = made
    teacher, reference, calibration = run("bfloat16", 40)
    worse = calibration.teacher.model_copy(update={"nll": tuple(reversed(calibration.teacher.nll))})
    path = layout.calibration(corpus.corpus_id, teacher.model_id, reference.model_id, "corpus")
    storage.write_json(path, calibration.model_copy(update={"teacher": worse}).as_json())
    with pytest.raises(
        FidelityError, match=r"of the 20 sequences that float32 scores select from 40, these dtypes select .*min_overlap 0.98"
    ):
        check_fidelity(storage, corpus, teacher, reference, make_plan())


def test_float32_against_itself_changes_nothing(made):
    *_, calibration = made[2]("float32", 10)
    fidelity = measure_fidelity(NOWHERE, CORPUS, calibration, SelectionConfig(ratio=0.3))
    assert (fidelity.num_selected, fidelity.overlap, fidelity.teacher_bias) == (3, 1.0, 0.0)
    assert fidelity.spearman == pytest.approx(1)


def test_fp8_without_a_calibration_does_not_score(made, tmp_path):
    storage, corpus, run = made
    entries = [identify_model(tmp_path / name, name, "fp8") for name in ("teacher", "reference")]
    with pytest.raises(FidelityError, match=r"fp8 was not compared with float32 .*--calibrate 1024"):
        check_fidelity(storage, corpus, *entries, make_plan())
    # too few sequences do not open the gate, nor does another device
    run("fp8", 4)
    with pytest.raises(FidelityError, match="on this device yet"):
        check_fidelity(storage, corpus, *entries, make_plan(min_overlap=0))
    *_, calibration = run("fp8", 75)
    check_fidelity(storage, corpus, *entries, make_plan(min_overlap=0))
    path = layout.calibration(corpus.corpus_id, *(entry.model_id for entry in entries), "corpus")
    storage.write_json(path, calibration.model_copy(update={"device": "another"}).as_json())
    with pytest.raises(FidelityError, match="on this device yet"):
        check_fidelity(storage, corpus, *entries, make_plan(min_overlap=0))
    exact = [entry.model_copy(update={"dtype": "bfloat16", "model_id": "other"}) for entry in entries]
    check_fidelity(storage, corpus, *exact, make_plan())


def test_a_damaged_calibration_is_none(made):
    storage, corpus, run = made
    teacher, reference, _ = run("bfloat16", 4)
    storage.write_json(layout.calibration(corpus.corpus_id, teacher.model_id, reference.model_id, "corpus"), {"corpus_id": 3})
    assert find_calibration(storage, corpus.corpus_id, teacher.model_id, reference.model_id, "corpus") is None


def test_too_few_candidates(tmp_path):
    storage = Storage(str(tmp_path))
    corpus = make_corpus(storage, {"candidate": [[[1, 2, 3]]]})
    entry = identify_model(save_model(make_llama(), tmp_path / "m"), "m", "bfloat16")
    with pytest.raises(CorpusError, match="1 candidate sequences; a calibration needs at least 2"):
        calibrate(storage, corpus, entry, entry, 4, lambda entry: None)
