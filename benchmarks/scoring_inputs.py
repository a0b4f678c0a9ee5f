"""What a scoring benchmark scores: a model folder, and a corpus of shards at a storage root of its own."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks.corpora import describe_corpus, name_tokenizer
from miniplm.config.run import CorpusConfig, SourceConfig, SplitsConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import load_corpus_tokenizer, read_shard, read_token_ids
from miniplm.corpus.shards import publish_shard
from miniplm.errors import ConfigError
from miniplm.models.presets import PRESETS
from miniplm.records.manifests import CorpusManifest, ShardEntry, TokenizerEntry
from miniplm.storage.root import Storage

Sequences = list[NDArray[Any]]

# The vocabulary of Qwen, of the published models and their teacher alike.
VOCAB_SIZE = 151936
# The published teacher, Qwen1.5-1.8B: its architecture, to be filled with random weights.
_TEACHER = {
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
RANDOM_MODELS: dict[str, dict[str, Any]] = {"qwen1.5-1.8b": _TEACHER} | {
    name: preset.describe() for name, preset in PRESETS.items()
}

# A packed sequence falls short of its full length by up to 40 tokens, since it is cut where a sentence ends.
_MOST_MISSING = 40
# Mean tokens of a document in random sequences: an EOS stands after each.
_DOCUMENT_TOKENS = 600


@dataclass(frozen=True)
class Inputs:
    """A model folder and a corpus of candidates. `tokenizer` turns its tokens into text and back; `data` says what they are."""

    folder: Path
    storage: Storage
    corpus: CorpusManifest
    tokenizer: Any
    data: str

    @property
    def shards(self) -> tuple[ShardEntry, ...]:
        return self.corpus.split_shards("candidate")

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_sequences(self) -> int:
        return sum(shard.num_sequences for shard in self.shards)

    def read_sequences(self) -> Sequences:
        """All sequences in the order of the shards."""
        return [row for shard in self.shards for row in read_token_ids(read_shard(self.storage, shard, ["token_ids"]))]


def write_random_model(name: str, folder: Path, device: torch.device, vocab_size: int = VOCAB_SIZE) -> None:
    """Random weights in an architecture of `RANDOM_MODELS`, made on `device` and kept in bfloat16, as Qwen's are."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(RANDOM_MODELS[name])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.vocab_size, config.max_position_embeddings = vocab_size, 32768
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(str(folder))


def make_random_sequences(num_sequences: int, length: int, vocab_size: int = VOCAB_SIZE) -> Sequences:
    """Sequences of length + 1 - 40 to length + 1 tokens, uniformly, as packing gives; ids are uniform, EOS is id 0."""
    rng = np.random.default_rng(0)
    sequences = []
    for num_tokens in rng.integers(max(2, length + 1 - _MOST_MISSING), length + 2, num_sequences):
        token_ids = rng.integers(1, vocab_size, num_tokens, dtype=np.uint32)
        token_ids[rng.random(num_tokens) < 1 / _DOCUMENT_TOKENS] = 0
        sequences.append(token_ids)
    return sequences


def make_word_tokenizer(vocab_size: int) -> Any:
    """A tokenizer for random ids: a word each, so that text has exactly the tokens it was made of."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": 0} | {f"t{index}": index for index in range(1, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def prepare_text(
    storage: Storage, tokenizer: str, text: str, length: int, eos_token: str | None, sequences_per_shard: int = 65536
) -> CorpusManifest:
    """A corpus of jsonl files with `text` and `meta.domain`, all of it candidates."""
    source = SourceConfig(path=text, format="jsonl", text="text", domain="meta.domain")
    config = CorpusConfig(
        sources=(source,),
        tokenizer=tokenizer,
        eos_token=eos_token,
        sequence_length=length,
        sequences_per_shard=sequences_per_shard,
        splits=SplitsConfig(reference=0, heldout=0),
    )
    return prepare_corpus(storage, config)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The options by which a scoring benchmark is told its model and its sequences."""
    add = parser.add_argument
    add("--model", default="models/smollm2-135m", help=f"a folder with a real model, or random weights: {', '.join(RANDOM_MODELS)}")
    add("--length", type=int, default=1024, help="targets a sequence (default 1024, as published)")
    add("--vocab-size", type=int, default=VOCAB_SIZE, help=f"ids of a random model (default {VOCAB_SIZE:,}, as published)")
    add("--text", default="samples/demo/*.jsonl.zst", help="jsonl files for a real model (default: the sample, `make assets`)")
    add("--eos-token", help="the token between documents; default the tokenizer's own (SmolLM2: '<|endoftext|>')")


def locate_model(given: argparse.Namespace, scratch: Path, device: torch.device) -> Path:
    """The folder of the model that is asked for; one of random weights is made below `scratch`. Raises `ConfigError` where there is none."""
    if given.model in RANDOM_MODELS:
        write_random_model(given.model, scratch / given.model, device, given.vocab_size)
        return scratch / given.model
    if not Path(given.model).is_dir():
        raise ConfigError(f"--model {given.model} is neither a folder nor one of {', '.join(RANDOM_MODELS)}")
    return Path(given.model)


def make_inputs(given: argparse.Namespace, folder: Path, storage: Storage, num_sequences: int, num_shards: int) -> Inputs:
    """Random sequences for a random model, packed text for another."""
    if given.model not in RANDOM_MODELS:
        return _make_text_inputs(given, folder, storage, num_sequences, num_shards)
    sequences = make_random_sequences(num_sequences, given.length, given.vocab_size)
    corpus = write_corpus(storage, sequences, num_shards, name_tokenizer(given.vocab_size), given.length)
    data = f"random ids, lengths uniform in {given.length + 1 - _MOST_MISSING}..{given.length + 1} tokens"
    return Inputs(folder, storage, corpus, make_word_tokenizer(given.vocab_size), data)


def _make_text_inputs(given: argparse.Namespace, folder: Path, storage: Storage, num_sequences: int, num_shards: int) -> Inputs:
    """Real text packed by MiniPLM with the model's tokenizer, spread over all of it, and again and again where there is too little."""
    prepared = prepare_text(storage, str(folder), given.text, given.length, given.eos_token)
    found = [
        row for shard in prepared.split_shards("candidate") for row in read_token_ids(read_shard(storage, shard, ["token_ids"]))
    ]
    places = (np.arange(num_sequences) * max(1.0, len(found) / num_sequences)).astype(int) % len(found)
    corpus = write_corpus(storage, [found[place] for place in places], num_shards, prepared.tokenizer, given.length)
    repeated = f", each {num_sequences / len(found):.1f} times" if num_sequences > len(found) else ""
    tokenizer = load_corpus_tokenizer(storage, prepared.corpus_id).tokenizer
    return Inputs(folder, storage, corpus, tokenizer, f"text of {given.text}, packed to {given.length} targets{repeated}")


def write_corpus(storage: Storage, sequences: Sequences, num_shards: int, tokenizer: TokenizerEntry, length: int) -> CorpusManifest:
    """Publishes sequences as the candidates of a corpus `benchmark`, cut evenly into shards."""
    shards, first = [], 0
    for index, places in enumerate(np.array_split(np.arange(len(sequences)), num_shards)):
        rows = [np.asarray(sequences[place], dtype=np.uint32) for place in places]
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
        ids = np.arange(first, first + len(rows), dtype=np.int64)
        table = pa.table(
            {
                "sequence_id": pa.array(ids),
                "domain": pa.array(["benchmark"] * len(rows)).dictionary_encode(),
                "document_ids": pa.array([[int(value)] for value in ids], pa.list_(pa.int64())),
                "num_tokens": pa.array(lengths),
                "token_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows))),
            }
        )
        shards.append(publish_shard(storage, "benchmark", "candidate", index, first, table))
        first += len(rows)
    return describe_corpus("benchmark", tokenizer, length, tuple(shards))
