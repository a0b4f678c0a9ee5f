"""Text that the teacher writes: distributed as the teacher says, the same whatever is generated beside it, in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miniplm import layout
from miniplm.config.run import GenerationConfig
from miniplm.derived import generation
from miniplm.derived.generation import GenerationJob
from miniplm.derived.reader import read_derived_shard
from miniplm.derived.sampling import GumbelSampling, draw_gumbel, make_key
from miniplm.derived.sequences import TrainingShard
from miniplm.derived.sets import make_set
from miniplm.errors import ConfigError, DerivedError, TrainingError
from miniplm.models.identity import identify_model
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.storage.root import Storage
from miniplm.training.data import read_training_shard
from miniplm.training.methods import METHODS, MethodInputs
from tests.miniplm.corpus_fixtures import read_tree
from tests.miniplm.made_models import make_llama, save_model
from tests.miniplm.made_trainings import EOS, VOCAB_SIZE, make_selection, make_training_corpus

PROMPT = 8
WINDOW = 17


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # More rows than the tokenizer has ids, as families pad theirs; and settings of its own for generation, which must not count.
    model = make_llama(vocab_size=VOCAB_SIZE + 8)
    model.generation_config.eos_token_id = list(range(40))
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.top_k = 2
    model.generation_config.do_sample = True
    return save_model(model, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> ModelEntry:
    return identify_model(teacher_folder, str(teacher_folder), "float32")


@pytest.fixture
def corpus(storage: Storage) -> CorpusManifest:
    return make_training_corpus(storage)


def make_job(corpus: CorpusManifest, teacher: ModelEntry, **settings: Any) -> GenerationJob:
    """All candidates, of 5 to 12 tokens: some are longer than the prompt, some are not."""
    config = GenerationConfig(**{"prompt_tokens": PROMPT, "sequences_per_shard": 6, **settings})
    shards = [TrainingShard(shard, shard.num_sequences, shard.num_tokens) for shard in corpus.split_shards("candidate")]
    return GenerationJob(corpus, teacher, config, {"all": True}, lambda storage: shards)


def read_rows(storage: Storage, job: GenerationJob) -> list[dict[str, Any]]:
    manifest = make_set(storage, job, "cpu")
    return [row for shard in manifest.shards for row in read_derived_shard(storage, shard).to_pylist()]


def read_originals(storage: Storage, corpus: CorpusManifest) -> list[list[int]]:
    shards = [TrainingShard(shard, shard.num_sequences, shard.num_tokens) for shard in corpus.split_shards("candidate")]
    parts = [read_training_shard(storage, shard) for shard in shards]
    return [ids.tolist() for token_ids, lengths in parts for ids in np.split(token_ids, np.cumsum(lengths)[:-1])]


def test_the_prompt_stays_and_the_teacher_writes_the_rest(storage: Storage, corpus: CorpusManifest, teacher: ModelEntry) -> None:
    job = make_job(corpus, teacher)
    rows, originals = read_rows(storage, job), read_originals(storage, corpus)
    manifest = make_set(storage, job, "cpu")
    assert len(rows) == len(originals) == 21
    for row, original in zip(rows, originals, strict=True):
        if len(original) <= PROMPT:
            assert row["token_ids"] == original
        else:
            assert row["token_ids"][:PROMPT] == original[:PROMPT]
            assert len(row["token_ids"]) == WINDOW == row["num_tokens"]
            assert max(row["token_ids"]) < VOCAB_SIZE
    num_long = sum(len(original) > PROMPT for original in originals)
    assert 5 < num_long < 21
    assert manifest.counts == {
        "sequences_generated": num_long,
        "sequences_kept": 21 - num_long,
        "tokens_generated": num_long * (WINDOW - PROMPT),
        "documents_ended": sum(row["token_ids"][PROMPT:].count(EOS) for row in rows if row["num_tokens"] == WINDOW),
    }
    assert [shard.num_sequences for shard in manifest.shards] == [6, 6, 6, 3]
    assert [row["sequence_id"] for row in rows] == list(range(21))
    # It goes on after an EOS of its own, and does not stop at the one of its generation_config.json.
    assert any(min(row["token_ids"][PROMPT:-1], default=99) < 40 for row in rows if row["num_tokens"] == WINDOW)


def test_each_token_is_the_likeliest_with_the_noise_of_its_own_place(
    storage: Storage, corpus: CorpusManifest, teacher: ModelEntry
) -> None:
    """The oracle: no cache, no batch, float64, logits of the whole sequence at once."""
    rows, originals = read_rows(storage, make_job(corpus, teacher, temperature=0.7, seed=3)), read_originals(storage, corpus)
    model = make_llama(vocab_size=VOCAB_SIZE + 8).double()
    for sequence_id, (row, original) in enumerate(zip(rows, originals, strict=True)):
        if len(original) > PROMPT:
            token_ids = torch.tensor([row["token_ids"]])
            logits = model(token_ids).logits[0] / 0.7
            for position in range(PROMPT, WINDOW):
                noise = draw_gumbel(torch.tensor([make_key(3, sequence_id, position)]), VOCAB_SIZE)[0]
                assert int((logits[position - 1, :VOCAB_SIZE] + noise).argmax()) == row["token_ids"][position]


@pytest.mark.parametrize("settings", [{"sequences_per_batch": 1}, {"sequences_per_batch": 4}, {"sequences_per_shard": 21}])
def test_batches_and_shards_change_no_text(
    storage: Storage, corpus: CorpusManifest, teacher: ModelEntry, tmp_path: Path, settings: dict[str, int]
) -> None:
    first = [row["token_ids"] for row in read_rows(storage, make_job(corpus, teacher))]
    other = Storage(str(tmp_path / "other"))
    storage.filesystem.cp(storage.path("corpora"), other.path("corpora"), recursive=True)
    assert [row["token_ids"] for row in read_rows(other, make_job(corpus, teacher, **settings))] == first


def test_the_seed_and_the_sequence_change_the_text(storage: Storage, corpus: CorpusManifest, teacher: ModelEntry) -> None:
    rows, others = (read_rows(storage, make_job(corpus, teacher, seed=seed)) for seed in (0, 1))
    assert all((row == other) == (row["num_tokens"] <= PROMPT) for row, other in zip(rows, others, strict=True))


def test_choices_are_distributed_as_the_softmax_of_float64() -> None:
    num, size = 20_000, 12
    logits = torch.linspace(-2, 2, size)
    draws = GumbelSampling(range(num), seed=7, vocab_size=size - 2, temperature=0.8)(
        torch.zeros((num, 9), dtype=torch.long), logits.repeat(num, 1)
    ).argmax(dim=1)
    weights = np.exp(logits[: size - 2].double().numpy() / 0.8)
    expected = num * weights / weights.sum()
    counts = np.bincount(draws.numpy(), minlength=size)
    assert counts[size - 2 :].tolist() == [0, 0]
    # Chi-square of 9 degrees of freedom: 99.9 % of draws are below 27.9.
    assert (((counts[: size - 2] - expected) ** 2) / expected).sum() < 27.9


def test_noise_is_as_good_along_positions_and_tokens() -> None:
    """Standard Gumbel: mean 0.5772, variance pi**2 / 6; neighbouring keys and tokens are not correlated."""
    noise = draw_gumbel(torch.tensor([make_key(0, sequence, position) for sequence in range(20) for position in range(20)]), 500)
    assert abs(noise.mean().item() - 0.57722) < 4 * 1.2825 / np.sqrt(noise.numel())
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, rel=0.03)
    centred = (noise - noise.mean()) / noise.std()
    for first, second in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs((first * second).mean().item()) < 4 / np.sqrt(first.numel())


def test_top_p_leaves_the_likeliest_tokens() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(2000, 1)
    draws = GumbelSampling(range(2000), 0, 4, top_p=0.7)(torch.zeros((2000, 1), dtype=torch.long), logits).argmax(dim=1)
    counts = np.bincount(draws.numpy(), minlength=4)
    assert counts[2:].tolist() == [0, 0]
    assert abs(counts[0] / 2000 - 0.625) < 0.05


def test_a_broken_shard_alone_is_generated_again(
    storage: Storage, corpus: CorpusManifest, teacher: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(corpus, teacher)
    make_set(storage, job, "cpu")
    whole = read_tree(storage, layout.derived_folder(job.derived_id))
    made: list[int] = []
    original = generation._Generator.make_shard
    monkeypatch.setattr(
        generation._Generator, "make_shard", lambda self, index, progress: made.append(index) or original(self, index, progress)
    )
    make_set(storage, make_job(corpus, teacher), "cpu")
    assert made == []
    storage.delete(layout.derived_shard(job.derived_id, 2))
    make_set(storage, job, "cpu")
    assert made == [2]
    assert read_tree(storage, layout.derived_folder(job.derived_id)) == whole


def test_a_batch_that_runs_out_of_memory_is_halved_and_one_sequence_is_an_error(
    storage: Storage, corpus: CorpusManifest, teacher: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = generation._Generator._generate
    sizes: list[int] = []
    most = 2

    def generate(self: Any, prompts: Any, sequence_ids: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, prompts, sequence_ids)

    monkeypatch.setattr(generation._Generator, "_generate", generate)
    job = make_job(corpus, teacher, sequences_per_shard=21)
    rows = read_rows(storage, job)
    assert sizes[0] > 4
    assert set(sizes[-3:]) <= {1, 2}
    assert [row["num_tokens"] for row in rows].count(WINDOW) == sum(size for size in sizes if size <= most)
    most = 0
    storage.delete(layout.derived_folder(job.derived_id))
    with pytest.raises(DerivedError, match="one sequence of 17 tokens does not fit in memory on cpu"):
        make_set(storage, job, "cpu")


def test_logits_that_are_nan_are_an_error(
    storage: Storage, corpus: CorpusManifest, teacher: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GumbelSampling, "saw_nan", property(lambda self: True))
    with pytest.raises(DerivedError, match=r"logits that are NaN \(among sequences 0 to .*teacher.dtype float32"):
        make_set(storage, make_job(corpus, teacher), "cpu")
    sampling = GumbelSampling([0, 1], 0, 3)
    monkeypatch.undo()
    sampling(torch.zeros((2, 1), dtype=torch.long), torch.tensor([[0.0, 1.0, 2.0], [0.0, float("nan"), 1.0]]))
    assert sampling.saw_nan


def test_seqkd_goes_on_from_what_pretrain_draws(storage: Storage, corpus: CorpusManifest, teacher: ModelEntry) -> None:
    selection = make_selection(storage, corpus, ([0, 3, 6], [], [8, 1]))
    inputs = MethodInputs(corpus, selection, 4, teacher, generation=GenerationConfig(prompt_tokens=PROMPT))
    with pytest.raises(DerivedError, match=r"derived set generation-.* is not complete"):
        METHODS["seqkd"].list_shards(storage, inputs)
    (job,) = METHODS["seqkd"].list_derived_jobs(inputs)
    make_set(storage, job, "cpu")
    drawn = [
        read_training_shard(storage, shard) for shard in METHODS["pretrain"].list_shards(storage, inputs) if shard.num_sequences
    ]
    (shard,) = METHODS["seqkd"].list_shards(storage, inputs)
    token_ids, lengths = read_training_shard(storage, shard)
    originals = [ids.tolist() for ids, sizes in drawn for ids in np.split(ids, np.cumsum(sizes)[:-1])]
    found = [ids.tolist() for ids in np.split(token_ids, np.cumsum(lengths)[:-1])]
    assert [ids[:PROMPT] for ids in found] == [ids[:PROMPT] for ids in originals]
    assert [len(ids) for ids in found] == [WINDOW if len(ids) > PROMPT else len(ids) for ids in originals]


def test_what_changes_the_text_is_in_its_id(corpus: CorpusManifest, teacher: ModelEntry) -> None:
    names = [
        make_job(corpus, teacher, **settings).derived_id
        for settings in ({}, {"seed": 1}, {"temperature": 0.5}, {"top_p": 0.5}, {"prompt_tokens": 9}, {"sequences_per_shard": 7})
    ]
    names.append(make_job(corpus, teacher.model_copy(update={"model_id": "other"})).derived_id)
    assert len(set(names)) == 7
    assert make_job(corpus, teacher, sequences_per_batch=3).derived_id == names[0]


def test_prompt_as_long_as_a_sequence_is_refused(storage: Storage, corpus: CorpusManifest, teacher: ModelEntry) -> None:
    selection = make_selection(storage, corpus, ([0], [], []))
    with pytest.raises(ConfigError, match=r"prompt_tokens is 768, but corpus.sequence_length is 16.*give at most 16"):
        METHODS["seqkd"].describe_data(MethodInputs(corpus, selection, teacher=teacher))
    with pytest.raises(TrainingError, match="the method 'seqkd' needs the run's teacher"):
        METHODS["seqkd"].describe_data(MethodInputs(corpus, selection))
