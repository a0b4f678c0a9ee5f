"""A finished run, again with a proxy: whose scores are joined, what people see of it, and what else stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from miniplm.config.files import load_config
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.errors import ProxyError, ScoreError, ScoreJoinError
from miniplm.proxy.labels import find_labelled
from miniplm.proxy.prediction import predict_shard
from miniplm.records.manifests import is_proxy
from miniplm.records.run import load_run
from miniplm.run import inspection, proxies, stages
from miniplm.run.resolution import resolve
from miniplm.run.scoring_models import open_proxy_scorer
from miniplm.run.status import check_run, require_corpus
from miniplm.storage.root import Storage
from tests.command_line import run_miniplm
from tests.miniplm.corpus_fixtures import read_tree
from tests.miniplm.made_corpora import write_scores
from tests.miniplm.proxy.made_labels import difference_of
from tests.tiny_runs import FinishedRun

SHARE = 0.4


@pytest.fixture
def config(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished run whose teacher is to score a share. Its teacher is random, so what it gave of the labels is made up here:
    something that a proxy can learn."""
    data = shutil.copytree(finished_run.data, tmp_path / "data")
    content = yaml.safe_load(finished_run.config.read_text())
    content |= {"storage": str(data), "students": [], "scoring": {"proxy": {"share": SHARE}}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    plan = resolve(load_config(str(path)))
    storage = Storage(str(data))
    labels = proxies.provide_labelled_corpus(storage, plan, require_corpus(storage, plan))
    for shard in labels.split_shards("candidate"):
        sequences = read_token_ids(read_shard(storage, shard))
        counts = [int((tokens[:-1] != labels.tokenizer.eos_token_id).sum()) for tokens in sequences]
        sums = [count * (5 - 4 * difference_of(tokens)) for tokens, count in zip(sequences, counts, strict=True)]
        write_scores(storage, shard, plan.require_teacher().model_id, sums, counts)
    return path


def test_a_run_selects_by_a_proxy_and_says_so(finished_run: FinishedRun, config: Path, prefect_server: dict[str, str]) -> None:
    storage = Storage(str(config.parent / "data"))
    before = read_tree(storage, "scores") | read_tree(storage, "selections")
    full = load_run(storage, "tiny")
    result = run_miniplm("run", str(config), prefect=prefect_server)
    assert result.returncode == 0, result.stderr
    assert "predicts the difference scores, and with them the teacher's NLLs, of all but the" in result.stdout
    record = load_run(storage, "tiny")
    assert record.proxy is not None
    assert record.proxy.proxy == "linear"
    # Nothing that was there was scored or selected again, and the selection has an id of its own.
    assert {
        path: content
        for path, content in (read_tree(storage, "scores") | read_tree(storage, "selections")).items()
        if path in before
    } == before
    assert record.selection_id != full.selection_id
    assert (record.teacher, record.reference) == (full.teacher, full.reference)
    scored = {stage.name: (stage.num_units, stage.reused) for stage in record.stages}
    plan = resolve(load_config(str(config)))
    corpus = require_corpus(storage, plan)
    assert scored["score proxy"] == (corpus.split_counts("candidate").num_tokens, False)
    assert scored["score teacher"][0] == pytest.approx(SHARE * scored["score proxy"][0], rel=0.2)

    status = check_run(storage, plan)
    assert status.complete
    assert [stage.name for stage in status.stages] == [
        "prepare", "score teacher", "reference", "score reference", "fit proxy", "score proxy", "select",
    ]  # fmt: skip
    for sequence in inspection.inspect_sequences(storage, record, limit=30):
        assert sequence.is_predicted != bool(find_labelled_one(sequence.sequence_id))
    with pytest.raises(ScoreError, match="predicts whole sequences"):
        inspection.inspect_documents(storage, record)
    page = (config.parent / "data" / "runs" / "tiny" / "report.html").read_text()
    assert '<section id="proxy">' in page
    assert "NLL teacher&nbsp;" in page
    assert "(predicted)" in page

    # What the full run had, it has again as soon as the proxy is left out.
    assert (
        stages.select(storage, resolve(load_config(str(config), ["scoring.proxy=null"])), corpus, record.reference)[0].selection_id
        == full.selection_id
    )
    strict = resolve(load_config(str(config), ["scoring.proxy.min_overlap=1", "selection.ratio=0.25"]))
    with pytest.raises(
        ProxyError, match=r"less than scoring.proxy.min_overlap 1; chance gives 2[45].*try scoring.proxy.scorer=head"
    ):
        stages.select(storage, strict, corpus, record.reference)
    # A shard of the proxy that is lost is named as such, with the command that predicts it again.
    lost = storage.path(f"scores/{corpus.corpus_id}/{record.proxy.model_id}/shard-00002.json")
    content = Path(lost).read_bytes()
    Path(lost).unlink()
    with pytest.raises(
        ScoreJoinError, match=r"shard-00002 has no proxy scores\. Run `miniplm score CONFIG --model proxy --shard 2`"
    ):
        stages.select(storage, plan, corpus, record.reference)
    scorer = open_proxy_scorer(storage, record.proxy, plan.scoring, corpus.sequence_length)
    predict_shard(storage, corpus, corpus.split_shards("candidate")[2], record.proxy, scorer)
    assert json.loads(Path(lost).read_text())["digest"] == json.loads(content)["digest"]


def find_labelled_one(sequence_id: int) -> bool:
    return bool(find_labelled(np.array([sequence_id]), SHARE, 0)[0])


def test_a_head_reads_the_references_states(config: Path) -> None:
    storage = Storage(str(config.parent / "data"))
    plan = resolve(load_config(str(config), ["scoring.proxy.scorer=head"]))
    corpus = require_corpus(storage, plan)
    reference = load_run(storage, "tiny").reference
    assert reference is not None
    manifest = proxies.provide_proxy(storage, plan, corpus, reference)
    assert is_proxy(manifest.proxy_id)
    assert manifest.num_features == 128 + 1
    scorer = open_proxy_scorer(storage, manifest.entry, plan.scoring, corpus.sequence_length)
    sequences = read_token_ids(read_shard(storage, corpus.split_shards("candidate")[0]))[:5]
    together = scorer.predict(sequences, np.full(5, 5.0))
    assert together == pytest.approx([scorer.predict([one], np.array([5.0]))[0] for one in sequences], abs=1e-4)


def test_a_share_that_labels_too_few_is_refused_before_anything_is_scored(config: Path) -> None:
    plan = resolve(load_config(str(config), ["scoring.proxy.share=0.05"]))
    with pytest.raises(ProxyError, match=r"scoring.proxy.share 0.05 of \d+ candidate sequences gives \d+ labels"):
        stages.prepare(Storage(plan.storage), plan)
