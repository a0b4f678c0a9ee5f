"""Held-out losses of a training's checkpoints: the numbers against float64, each measured once, killed in between or not."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from miniplm import layout
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.errors import CorpusError, ScoreError
from miniplm.evaluation.heldout import evaluate_heldout, find_heldout
from miniplm.evaluation.losses import find_losses
from miniplm.evaluation.milestones import evaluate_checkpoints, find_checkpoint_evaluations, find_evaluation, is_measured
from miniplm.models.loading import load_model
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, DomainLoss, TrainingManifest
from miniplm.records.texts import MeasuredText
from miniplm.scoring.engine import Scorer
from miniplm.storage.root import Storage
from miniplm.training.loop import train_model
from tests.ends import Interrupted
from tests.miniplm.made_trainings import EOS, make_plan, make_training_corpus


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CorpusManifest, TrainingManifest]:
    """A storage root with a training of six steps of which every second checkpoint is there."""
    root = tmp_path_factory.mktemp("trained")
    storage = Storage(str(root))
    corpus = make_training_corpus(storage, heldout=(9, 6))
    return root, corpus, train_model(storage, make_plan(corpus, keep_checkpoints=9, milestone_every_steps=2))


@pytest.fixture
def parts(
    trained: tuple[Path, CorpusManifest, TrainingManifest], tmp_path: Path
) -> tuple[Storage, CorpusManifest, TrainingManifest]:
    root, corpus, training = trained
    shutil.copytree(root, tmp_path / "root")
    return Storage(str(tmp_path / "root")), corpus, training


class Opener:
    """Opens scorers, and knows of which folders; dies at the one after `most`."""

    def __init__(self, most: int = 99) -> None:
        self.opened: list[str] = []
        self.most = most

    def __call__(self, folder: Path) -> Scorer:
        if len(self.opened) == self.most:
            raise Interrupted
        self.opened.append(folder.name)
        return Scorer(load_model(folder, "float32", torch.device("cpu")), 64, compile=False)


def evaluate(
    parts: tuple[Storage, CorpusManifest, TrainingManifest],
    opener: Opener,
    every: int | None = 2,
    on_progress: ProgressCallback = ignore_progress,
) -> DomainLoss:
    storage, corpus, training = parts
    text = find_heldout(storage, corpus)
    return evaluate_checkpoints(storage, text, training, training.checkpoint, every, opener, on_progress).overall


def nats_by_hand(storage: Storage, corpus: CorpusManifest, folder: Path) -> dict[str, float]:
    """Mean NLL of the targets whose input is no EOS, by domain, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    sums: dict[str, list[float]] = {}
    for shard in corpus.split_shards("heldout"):
        table = read_shard(storage, shard)
        for domain, ids in zip(table["domain"].to_pylist(), read_token_ids(table), strict=True):
            tokens = torch.tensor(ids.astype("int64"))
            with torch.no_grad():
                logits = model(tokens[None, :-1]).logits[0]
            nll = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
            sums.setdefault(domain, []).extend(nll[tokens[:-1] != EOS].tolist())
    return {domain: math.fsum(values) / len(values) for domain, values in sums.items()}


def test_every_checkpoint_is_measured_as_by_hand(parts: tuple[Storage, CorpusManifest, TrainingManifest]) -> None:
    storage, corpus, training = parts
    told: list[Progress] = []
    evaluate(parts, Opener(), on_progress=told.append)
    found = find_checkpoint_evaluations(storage, MeasuredText(corpus_id=corpus.corpus_id), training.training_id)
    assert list(found) == [2, 4, 6]
    for step, evaluation in found.items():
        expected = nats_by_hand(storage, corpus, Path(storage.path(layout.checkpoint_folder(training.training_id, step))))
        assert {domain: loss.nats_per_token for domain, loss in evaluation.domains.items()} == pytest.approx(expected, abs=1e-5)
        for loss in (evaluation.overall, *evaluation.domains.values()):
            assert loss.nats_standard_error is not None
            assert 0 < loss.nats_standard_error < loss.nats_per_token
            # The made corpus has three bytes a token.
            assert loss.bits_per_byte == pytest.approx(loss.nats_per_token / math.log(2) / 3)
            assert loss.bits_standard_error == pytest.approx(loss.nats_standard_error / math.log(2) / 3)
    assert found[6] == find_evaluation(storage, MeasuredText(corpus_id=corpus.corpus_id), training)
    assert found[2].overall.nats_per_token > found[6].overall.nats_per_token
    num_tokens = corpus.split_counts("heldout").num_tokens
    assert (told[-1].done, told[-1].total) == (3 * num_tokens, 3 * num_tokens)
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert told[0].detail.startswith("checkpoint 1 of 3")


def test_losses_of_sequences_are_those_of_the_final_model(parts: tuple[Storage, CorpusManifest, TrainingManifest]) -> None:
    storage, corpus, training = parts
    evaluate(parts, Opener())
    evaluation = find_evaluation(storage, MeasuredText(corpus_id=corpus.corpus_id), training)
    assert evaluation is not None
    losses = find_losses(storage, training.training_id, evaluation.losses_digest)
    assert losses is not None
    tables = [read_shard(storage, shard) for shard in corpus.split_shards("heldout")]
    assert losses.sequence_id.tolist() == [value for table in tables for value in table["sequence_id"].to_pylist()]
    assert losses.document_id.tolist() == [values[0] for table in tables for values in table["document_ids"].to_pylist()]
    assert losses.nll_sum.sum() / losses.num_scored_tokens.sum() == pytest.approx(evaluation.overall.nats_per_token)
    assert losses.standard_error() == evaluation.overall.nats_standard_error


def test_killed_in_between_only_what_is_missing_is_measured(parts: tuple[Storage, CorpusManifest, TrainingManifest]) -> None:
    storage, corpus, training = parts
    whole = evaluate(parts, Opener())
    files = [layout.checkpoint_evaluation(training.training_id, step) for step in (2, 4, 6)]
    before = [storage.read_json(file) for file in files]
    for file in (*files, layout.training_evaluation(training.training_id), layout.heldout_losses(training.training_id)):
        storage.delete(file)
    with pytest.raises(Interrupted):
        evaluate(parts, Opener(most=1))
    assert not is_measured(storage, MeasuredText(corpus_id=corpus.corpus_id), training, 2)
    again = Opener()
    assert evaluate(parts, again) == whole
    assert again.opened == ["step-00000004", "step-00000006"]
    assert is_measured(storage, MeasuredText(corpus_id=corpus.corpus_id), training, 2)
    after = [storage.read_json(file) for file in files]
    assert [content | {"seconds": 0} for content in after] == [content | {"seconds": 0} for content in before]
    last = Opener()
    evaluate(parts, last)
    assert last.opened == []


def test_milestones_are_measured_where_they_are_asked_for_and_whole(
    parts: tuple[Storage, CorpusManifest, TrainingManifest],
) -> None:
    storage, corpus, training = parts
    opener = Opener()
    evaluate(parts, opener, every=None)
    assert opener.opened == ["step-00000006"]
    assert is_measured(storage, MeasuredText(corpus_id=corpus.corpus_id), training, None)
    assert not is_measured(storage, MeasuredText(corpus_id=corpus.corpus_id), training, 4)
    weights = Path(storage.path(layout.checkpoint_folder(training.training_id, 2))) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    opener = Opener()
    evaluate(parts, opener)
    assert opener.opened == ["step-00000004"]
    assert list(find_checkpoint_evaluations(storage, MeasuredText(corpus_id=corpus.corpus_id), training.training_id)) == [4, 6]
    # What was measured stays when the checkpoint goes.
    storage.delete(layout.checkpoint_folder(training.training_id, 4))
    assert list(find_checkpoint_evaluations(storage, MeasuredText(corpus_id=corpus.corpus_id), training.training_id)) == [4, 6]
    assert find_checkpoint_evaluations(storage, MeasuredText(corpus_id="another corpus"), training.training_id) == {}


def test_an_evaluation_of_an_older_version_is_made_again(parts: tuple[Storage, CorpusManifest, TrainingManifest]) -> None:
    storage, corpus, training = parts
    evaluate(parts, Opener(), every=None)
    path = layout.training_evaluation(training.training_id)
    content = storage.read_json(path)
    old = {key: value for key, value in storage.read_json(path).items() if key not in ("losses_digest", "tasks")}
    for loss in (old["overall"], *old["domains"].values()):
        del loss["nats_standard_error"]
    storage.write_json(path, old)
    found = find_evaluation(storage, MeasuredText(corpus_id=corpus.corpus_id), training)
    assert found is not None
    assert found.overall.nats_standard_error is None
    assert not is_measured(storage, MeasuredText(corpus_id=corpus.corpus_id), training, None)
    opener = Opener()
    evaluate(parts, opener, every=None)
    assert len(opener.opened) == 1
    assert storage.read_json(path) | {"seconds": 0} == content | {"seconds": 0}


def test_damaged_and_foreign_evaluations_are_none(parts: tuple[Storage, CorpusManifest, TrainingManifest]) -> None:
    storage, corpus, training = parts
    evaluate(parts, Opener(), every=None)
    other = training.model_copy(update={"weights_digest": "sha256:other"})
    assert find_evaluation(storage, MeasuredText(corpus_id=corpus.corpus_id), other) is None
    assert find_evaluation(storage, MeasuredText(corpus_id="other"), training) is None
    storage.write_bytes(layout.training_evaluation(training.training_id), b"{")
    assert find_evaluation(storage, MeasuredText(corpus_id=corpus.corpus_id), training) is None


def test_a_corpus_without_heldout_text_and_a_model_gone_wrong_are_refused(
    parts: tuple[Storage, CorpusManifest, TrainingManifest],
) -> None:
    storage, corpus, training = parts
    without = corpus.model_copy(update={"shards": corpus.split_shards("candidate")})
    with pytest.raises(CorpusError, match=r"has no held-out sequences; give corpus.splits.heldout a larger share"):
        find_heldout(storage, without)
    scorer = Opener()(Path(storage.path(training.checkpoint)))
    head = replace(scorer.model.head, weight_VH=scorer.model.head.weight_VH * float("nan"))
    broken = Scorer(replace(scorer.model, head=head), 64, compile=False)
    with pytest.raises(ScoreError, match=r"has a held-out loss that is not finite \(a, b\); its training went wrong"):
        evaluate_heldout(find_heldout(storage, corpus), broken, "sha256:w")
