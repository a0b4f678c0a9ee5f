"""What is right only while numbers are small: ids of 16 bits, sums and offsets of 32, names with five digits, seeds of 64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from miniplm import layout
from miniplm.config.fields import LARGEST_SEED
from miniplm.config.run import CorpusConfig, GenerationConfig, TrainingConfig
from miniplm.corpus.packing import PackedSequence
from miniplm.corpus.reader import read_token_ids
from miniplm.corpus.shards import OpenShard, make_schema
from miniplm.derived.generation import check_generation
from miniplm.errors import ConfigError, ScoreError
from miniplm.models.architectures import build_model
from miniplm.records.manifests import ModelEntry
from miniplm.scoring.failures import find_failures, record_failure
from miniplm.scoring.shards import check_score_shards
from miniplm.selection.budgets import count_selected
from miniplm.storage.root import Storage
from miniplm.training.data import collate, count_scored_targets
from miniplm.training.losses import sum_language_model_loss
from miniplm.training.methods.pretrain import draw_sequences
from miniplm.training.optimization import Optimization
from miniplm.training.parallel import ProcessGroup
from tests.miniplm.made_corpora import make_corpus, write_scores

PUBLISHED_EOS = {"Qwen": 151_643, "Llama 3.1": 128_001, "the last of 16 bits": 65_535, "the first beyond": 65_536}


@pytest.mark.parametrize(("vocab_size", "kind"), [(65_535, pa.uint16()), (65_536, pa.uint16()), (65_537, pa.uint32())])
def test_a_shard_keeps_the_largest_id_of_its_vocabulary(tmp_path: Path, vocab_size: int, kind: pa.DataType) -> None:
    assert make_schema(vocab_size).field("token_ids").type.value_type == kind
    shard, ids = OpenShard(vocab_size), np.array([0, vocab_size - 1], np.uint32)
    shard.append("a", PackedSequence(ids, [2**40]))
    shard.write(tmp_path / "x.parquet", 2**40)
    table = pq.read_table(tmp_path / "x.parquet")
    (read,) = read_token_ids(table)
    assert (read.tolist(), table["document_ids"].to_pylist(), table["sequence_id"].to_pylist()) == (
        ids.tolist(),
        [[2**40]],
        [2**40],
    )


@pytest.mark.parametrize("eos_token_id", PUBLISHED_EOS.values(), ids=PUBLISHED_EOS.keys())
@pytest.mark.parametrize("group", [ProcessGroup(), ProcessGroup(rank=1, world_size=2)], ids=["alone", "second of two"])
def test_a_step_is_prepared_with_any_eos(eos_token_id: int, group: ProcessGroup) -> None:
    """Three micro-batches of one sequence among two processes: the second is given an empty one, of EOS alone."""
    config = TrainingConfig(steps=1, batch_size=4, micro_batch_size=1, warmup_steps=0)
    model = build_model("qwen-tiny", 64, 16, seed=1)
    optimization = Optimization(model, sum_language_model_loss, config, "float32", eos_token_id)
    optimization._group = group
    dtype = np.uint16 if eos_token_id < 65_536 else np.uint32
    sequences = [np.array([eos_token_id, 5, eos_token_id, 7, 8], dtype) for _ in range(3)]
    batch = optimization.prepare(sequences)
    assert (batch.num_scored, batch.num_tokens) == (3 * 2, 15)
    rows = [part.token_ids_BT.tolist() for part in batch.micro_batches]
    whole = [[eos_token_id, 5, eos_token_id, 7, 8]]
    assert rows == ([whole] * 3 if group.is_alone else [whole, [[eos_token_id, eos_token_id]]])
    assert [len(part.scored_N) for part in batch.micro_batches] == ([2] * 3 if group.is_alone else [2, 0])


def test_padding_and_masks_know_an_eos_beyond_16_bits_in_ids_of_either_width() -> None:
    eos = 151_643
    batch = collate([np.array([1, eos, 20_571, 3], np.uint32), np.array([4, 20_571], np.uint16)], eos)
    assert batch.token_ids_BT.tolist() == [[1, eos, 20_571, 3], [4, 20_571, eos, eos]]
    # 20,571 is 151,643 in 16 bits, and no EOS.
    assert batch.mask_BS.tolist() == [[True, False, True], [True, False, False]]
    assert count_scored_targets([np.array([4, 20_571, 5], np.uint16)], eos) == 2


def test_draws_reach_numbers_of_tokens_beyond_32_bits() -> None:
    """3,000 sequences of a million tokens: 2.5 billion tokens are 2,500 of them."""
    drawn = draw_sequences(np.full(3000, 1_000_000, np.int32), 2_500_000_000, seed=0)
    assert len(drawn) == len(np.unique(drawn)) == 2500


def test_quotas_of_many_candidates_are_exact() -> None:
    assert count_selected(10**17 + 1, 0.5) == 5 * 10**16
    assert count_selected(10**12, 0.29) == 29 * 10**10


@pytest.mark.parametrize(("sequence_length", "most"), [(1024, 2_095_105), (32_768, 65_534), (1_000_000, 2147)])
def test_a_shard_whose_tokens_one_list_cannot_hold_is_refused(sequence_length: int, most: int) -> None:
    def make(num: int) -> CorpusConfig:
        return CorpusConfig(
            sources=({"path": "x", "domain_name": "d"},),
            tokenizer="t",
            sequence_length=sequence_length,
            sequences_per_shard=num,  # type: ignore[arg-type]
        )

    assert make(most).sequences_per_shard == most
    assert most * (sequence_length + 1) <= np.iinfo(np.int32).max
    with pytest.raises(ValidationError, match=rf"a shard holds at most 2,147,483,647 tokens.*give at most {most}"):
        make(most + 1)
    check_generation(GenerationConfig(prompt_tokens=1, sequences_per_shard=most), sequence_length)
    with pytest.raises(ConfigError, match=rf"generation.sequences_per_shard is {most + 1}.*give at most {most}"):
        check_generation(GenerationConfig(prompt_tokens=1, sequences_per_shard=most + 1), sequence_length)


@pytest.mark.parametrize("section", [TrainingConfig, GenerationConfig])
def test_seeds_are_those_that_every_generator_takes(section: Any) -> None:
    steps = {"steps": 1, "warmup_steps": 0} if section is TrainingConfig else {}
    torch.Generator().manual_seed(section(seed=LARGEST_SEED, **steps).seed)
    np.random.Generator(np.random.PCG64([LARGEST_SEED, 1, 2]))
    with pytest.raises(ValidationError, match="less than or equal to 9223372036854775807"):
        section(seed=LARGEST_SEED + 1, **steps)


def test_shards_beyond_99_999_are_found_by_number_not_by_the_order_of_names(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    corpus = make_corpus(storage, {"candidate": [[[1, 2, 0]], [[3, 4, 0]]]})
    indices = (99_999, 100_000)
    shards = [
        shard.model_copy(update={"shard_index": index})
        for shard, index in zip(corpus.split_shards("candidate"), indices, strict=True)
    ]
    corpus = corpus.model_copy(update={"shards": tuple(reversed(shards))})
    assert [layout.shard_name(index) for index in indices] == ["shard-99999", "shard-100000"]
    assert [shard.shard_index for shard in corpus.split_shards("candidate")] == [99_999, 100_000]
    entry = ModelEntry(model_id="m", source="m", dtype="float32", weights_digest="sha256:w", num_parameters=1)
    for shard, nll in zip(shards, (1.0, 2.0), strict=True):
        write_scores(storage, shard, "m", [nll], [2])
    assert [state.shard_index for state in check_score_shards(storage, corpus, "m") if state.manifest is not None] == [
        99_999,
        100_000,
    ]
    record_failure(storage, shards[1], entry, ScoreError("x"))
    assert list(find_failures(storage, corpus, "m")) == [100_000]
