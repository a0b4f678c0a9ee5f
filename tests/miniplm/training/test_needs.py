"""Trainings on derived sets: what is to be made first, and the id that is known before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miniplm import layout
from miniplm.config.run import GenerationConfig, TrainingConfig
from miniplm.derived.sets import make_set
from miniplm.errors import ConfigError, DerivedError
from miniplm.models.identity import identify_model
from miniplm.records.manifests import CorpusManifest
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer
from miniplm.training.data import read_training_shard
from miniplm.training.loop import train_model
from miniplm.training.needs import list_derived_jobs
from miniplm.training.recipe import TrainingPlan, plan_training
from tests.miniplm.made_models import make_llama, save_model
from tests.miniplm.made_trainings import EOS, VOCAB_SIZE, make_selection
from tests.tiny_runs import make_tokenizer

TRAINING = TrainingConfig(steps=2, batch_size=4, learning_rate=1e-3, warmup_steps=1)


@pytest.fixture
def own(tmp_path: Path) -> CorpusTokenizer:
    make_tokenizer(tmp_path / "own", [{"text": " ".join(f"w{index}" for index in range(60))}], vocab_size=280)
    return load_tokenizer(str(tmp_path / "own"))


def make_plan(storage: Storage, corpus: CorpusManifest, method: str, **options: Any) -> TrainingPlan:
    selection = make_selection(storage, corpus, ([0, 3, 6], [2], [8, 1]))
    return plan_training(corpus, method, "qwen-tiny", TRAINING, selection=selection, device="cpu", **options)


def test_a_student_of_another_tokenizer_is_trained_on_the_same_text(
    storage: Storage, corpus: CorpusManifest, own: CorpusTokenizer
) -> None:
    plan, plain = make_plan(storage, corpus, "miniplm", own_tokenizer=own), make_plan(storage, corpus, "miniplm")
    assert plan.training_id != plain.training_id
    assert (plan.recipe.vocab_size, plan.recipe.eos_token_id) == (320, own.eos_token_id)
    assert (plain.recipe.vocab_size, plain.recipe.eos_token_id) == (VOCAB_SIZE, EOS)
    with pytest.raises(DerivedError, match=r"derived set conversion-\w+ is not complete"):
        train_model(storage, plan)
    (job,) = list_derived_jobs(plan)
    make_set(storage, job)
    token_ids = np.concatenate([read_training_shard(storage, shard)[0] for shard in plan.list_shards(storage)])
    words = own.decode(token_ids[token_ids != own.eos_token_id]).count("w")
    chosen = np.concatenate([read_training_shard(storage, shard)[0] for shard in plain.list_shards(storage) if shard.num_sequences])
    assert words == int((chosen != EOS).sum())
    manifest = train_model(storage, plan)
    assert manifest.num_steps == 2
    assert plan.load_tokenizer(storage).entry.digest == own.entry.digest == plan.recipe.tokenizer_digest


def test_the_recipe_alone_is_enough_to_train(storage: Storage, corpus: CorpusManifest, own: CorpusTokenizer) -> None:
    plan = make_plan(storage, corpus, "miniplm", own_tokenizer=own)
    for job in list_derived_jobs(plan):
        make_set(storage, job)
    again = TrainingPlan(plan.recipe, plan.architecture, plan.inputs, plan.config, plan.device)
    assert again.training_id == plan.training_id
    assert again.list_shards(storage) == plan.list_shards(storage)
    assert again.load_tokenizer(storage).entry == plan.load_tokenizer(storage).entry


def test_the_teachers_text_is_encoded_anew_too(
    storage: Storage, corpus: CorpusManifest, own: CorpusTokenizer, tmp_path: Path
) -> None:
    folder = save_model(make_llama(vocab_size=VOCAB_SIZE), tmp_path / "teacher")
    options = {"teacher": identify_model(folder, str(folder), "float32"), "generation": GenerationConfig(prompt_tokens=7)}
    plan, plain = make_plan(storage, corpus, "seqkd", own_tokenizer=own, **options), make_plan(storage, corpus, "seqkd", **options)
    generation, conversion = list_derived_jobs(plan)
    assert [job.derived_id for job in list_derived_jobs(plain)] == [generation.derived_id]
    with pytest.raises(DerivedError, match=r"derived set generation-\w+ is not complete"):
        make_set(storage, conversion)
    generated, converted = make_set(storage, generation, "cpu"), make_set(storage, conversion)
    token_ids = np.concatenate([read_training_shard(storage, shard)[0] for shard in plan.list_shards(storage)])
    originals = [read_training_shard(storage, shard) for shard in plain.list_shards(storage)]
    num_words = sum(int((ids != EOS).sum()) for ids, _ in originals)
    assert own.decode(token_ids[token_ids != own.eos_token_id]).count("w") == num_words
    # No sequence runs on into the next: the teacher wrote its end.
    assert converted.counts["borders_added"] == sum(
        int(part[-1] != EOS) for ids, lengths in originals for part in np.split(ids, np.cumsum(lengths)[:-1])
    )
    assert generated.num_sequences == sum(len(lengths) for _, lengths in originals)
    assert not storage.exists(layout.derived_tokenizer(generation.derived_id))


def test_the_corpus_own_tokenizer_is_nothing_to_encode_for(storage: Storage, corpus: CorpusManifest) -> None:
    same = load_tokenizer(storage.path(layout.corpus_tokenizer(corpus.corpus_id)))
    plan = make_plan(storage, corpus, "miniplm", own_tokenizer=same)
    assert plan.training_id == make_plan(storage, corpus, "miniplm").training_id
    assert list_derived_jobs(plan) == []


def test_a_vocabulary_smaller_than_the_own_tokenizer_is_refused(
    storage: Storage, corpus: CorpusManifest, own: CorpusTokenizer
) -> None:
    with pytest.raises(ConfigError, match=rf"vocab_size is 64, but the tokenizer has {own.entry.vocab_size} ids"):
        make_plan(storage, corpus, "miniplm", own_tokenizer=own, vocab_size=64)
