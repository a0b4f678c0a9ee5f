"""A GPU writes what a CPU writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from miniplm.config.run import GenerationConfig
from miniplm.derived.generation import GenerationJob
from miniplm.derived.reader import read_derived_shard
from miniplm.derived.sampling import draw_gumbel, make_key
from miniplm.derived.sequences import TrainingShard
from miniplm.derived.sets import make_set
from miniplm.models.identity import identify_model
from miniplm.storage.root import Storage
from tests.miniplm.made_models import make_llama, save_model
from tests.miniplm.made_trainings import VOCAB_SIZE, make_training_corpus

pytestmark = pytest.mark.gpu


def test_noise_is_the_same_on_both() -> None:
    keys = torch.tensor([make_key(1, sequence, 7) for sequence in range(50)])
    torch.testing.assert_close(draw_gumbel(keys.cuda(), 4000).cpu(), draw_gumbel(keys, 4000), rtol=1e-12, atol=1e-12)


def test_float32_gives_the_same_text_on_both(tmp_path: Path) -> None:
    folder = save_model(make_llama(vocab_size=VOCAB_SIZE), tmp_path / "teacher")
    teacher = identify_model(folder, str(folder), "float32")
    written = []
    for device in ("cpu", "cuda"):
        storage = Storage(str(tmp_path / device))
        corpus = make_training_corpus(storage)
        shards = [TrainingShard(shard, shard.num_sequences, shard.num_tokens) for shard in corpus.split_shards("candidate")]
        job = GenerationJob(corpus, teacher, GenerationConfig(prompt_tokens=8), {}, lambda storage, shards=shards: shards)
        manifest = make_set(storage, job, device)
        written.append([read_derived_shard(storage, shard)["token_ids"].to_pylist() for shard in manifest.shards])
    assert written[0] == written[1]
