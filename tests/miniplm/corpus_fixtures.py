"""Small tokenizers, made here, and what tests of a corpus need again and again."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from miniplm.config.run import CorpusConfig
from miniplm.corpus.reader import load_corpus_tokenizer, read_shard, read_token_ids
from miniplm.storage.root import Storage

EOS = "<|end|>"
# Ids of the word tokenizer: `EOS` is 0, "[UNK]" is 1, then these in order.
WORDS = ["one", " two", " three", " four", ".", "\n", " I", " am", " the", " D", "A", "!", " (", ";", ")", ". ", "(.", " five", "?"]
TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog. It was a bright cold day in April, and the clocks were striking.",
    "def f(x):\n    return x + 1;\n\nprint(f(2))\n",
    "Ünïcödé, naïve café; 日本語の文章。 Ça va? Oui!  Two  spaces.\tTabs.",
    "Numbers 123 456 7890, words and more words. " * 3,
]


def word_id(token: str) -> int:
    return 2 + WORDS.index(token)


def make_word_tokenizer() -> Tokenizer:
    """Each of WORDS is a token, anything else is [UNK]; decoding joins the tokens as they are."""
    vocabulary = {EOS: 0, "[UNK]": 1, **{word: 2 + index for index, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\(\.|\. (?= )| ?[A-Za-z]+| ?\(|[.!?;)\n]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def make_bytes_tokenizer() -> Tokenizer:
    """Byte-level BPE with merges: any text, no unknowns."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer


def make_metaspace_tokenizer() -> Tokenizer:
    """As SentencePiece BPE converts: a space is put before each text, and the whole text is one word to merge."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    words = [f"▁{word}" for text in TRAINING_TEXT for word in text.replace("\n", " \n ").split(" ") if word]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", EOS], show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


MAKERS = {"word": make_word_tokenizer, "bytes": make_bytes_tokenizer, "metaspace": make_metaspace_tokenizer}


def save_tokenizer(folder: Path, kind: str = "bytes", eos_token: str | None = EOS) -> str:
    """Writes a tokenizer as a folder that the library loads, and gives its path."""
    extra: dict[str, Any] = {} if eos_token is None else {"eos_token": eos_token}
    PreTrainedTokenizerFast(tokenizer_object=MAKERS[kind](), **extra).save_pretrained(str(folder))
    return str(folder)


def write_jsonl(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def make_config(tokenizer: str, *sources: dict[str, Any], **settings: Any) -> CorpusConfig:
    """Short sequences and small shards, all documents candidates, unless told otherwise."""
    defaults = {"sequence_length": 8, "sequences_per_shard": 5, "splits": {"reference": 0, "heldout": 0}}
    return CorpusConfig.model_validate({"sources": sources, "tokenizer": tokenizer, **defaults, **settings})


def make_documents(num_documents: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    words = ["alpha", "beta.", "gamma", "delta!", "epsilon\n", "zeta;", "(eta", "theta)", "iota?", "日本"]
    return [
        {"text": " ".join(rng.choices(words, k=rng.randint(1, 40))) + str(index), "domain": rng.choice("abc")}
        for index in range(num_documents)
    ]


def make_growing(folder: Path, tokenizer: str, extend: bool = True, **settings: Any) -> CorpusConfig:
    defaults = {"sequence_length": 40, "splits": {"reference": 0.25, "heldout": 0.15}}
    return make_config(tokenizer, {"path": f"{folder}/*.jsonl", "domain": "domain"}, extend=extend, **{**defaults, **settings})


def read_sequences(storage: Storage, corpus_id: str, shards: Sequence[Any]) -> list[dict[str, Any]]:
    """All rows of the shards, in order, token ids as lists."""
    rows: list[dict[str, Any]] = []
    for shard in shards:
        table = read_shard(storage, shard)
        for row, token_ids in zip(table.to_pylist(), read_token_ids(table), strict=True):
            rows.append({**row, "token_ids": token_ids.tolist()})
    return rows


def decode_rows(storage: Storage, corpus_id: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    tokenizer = load_corpus_tokenizer(storage, corpus_id)
    return [tokenizer.decode(row["token_ids"]) for row in rows]


def read_tree(storage: Storage, folder: str) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    root = storage.path(folder)
    return {str(path)[len(root) :]: storage.filesystem.cat_file(path) for path in storage.filesystem.find(root)}
