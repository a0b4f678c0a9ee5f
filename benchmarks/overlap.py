"""Seconds and memory of looking for copies and for evaluation texts in a corpus, a microsecond a token or less.

A corpus of words drawn by Zipf's law, of whose documents a tenth are copies of another, a third of these with every sixtieth word changed;
10,000 questions of 30 words, of which a hundred are in the corpus. Both searches in a process of their own.

    python -m benchmarks.overlap --sequences 20000 200000
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.corpora import describe_corpus
from benchmarks.records import Rows, add_sides, describe_place, format_rows, make_parser, measure_apart, measure_work, run_benchmark
from miniplm import layout
from miniplm.corpus.shards import make_schema, publish_shard
from miniplm.overlap.contamination import provide_contamination
from miniplm.overlap.copies import provide_copies
from miniplm.overlap.evaluation_texts import EvaluationItem, EvaluationSource
from miniplm.records.manifests import CorpusManifest
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer

SIDES = ("copies", "contamination")
_LENGTH = 1025
_SHARD_SEQUENCES = 16_384
_DOCUMENT_TOKENS = 400
_VOCABULARY = 30_000
_QUESTIONS = 10_000
_EOS = 0


def _make_tokenizer(folder: Path) -> None:
    """A word is a token, with the space before it."""
    vocabulary = {"<eos>": _EOS} | {f" w{number}": number for number in range(1, _VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    backend.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(str(folder))


def _draw(rng: np.random.Generator, num: int) -> np.ndarray[Any, Any]:
    """Words (num,) by Zipf's law."""
    return np.minimum(rng.zipf(1.2, num), _VOCABULARY - 1).astype(np.uint16)


def _list_questions() -> list[np.ndarray[Any, Any]]:
    """The words (30,) of each question."""
    rng = np.random.default_rng(1)
    return [_draw(rng, 30) for _ in range(_QUESTIONS)]


def _list_documents(num_tokens: int) -> Iterator[np.ndarray[Any, Any]]:
    """Documents (num_tokens,) with their EOS, until there are so many tokens."""
    rng, questions = np.random.default_rng(0), _list_questions()
    earlier: list[np.ndarray[Any, Any]] = []
    written, number = 0, 0
    while written < num_tokens:
        document = _draw(rng, int(rng.integers(_DOCUMENT_TOKENS // 4, 2 * _DOCUMENT_TOKENS)))
        if earlier and rng.random() < 0.1:
            document = earlier[rng.integers(len(earlier))].copy()
            if rng.random() < 1 / 3:
                document[::60] = _draw(rng, len(document[::60]))
        elif number % 997 == 0 and number // 997 < 100:
            document[10:40] = questions[number // 997]
        if len(earlier) < 10_000:
            earlier.append(document)
        yield np.append(document, np.uint16(_EOS))
        written, number = written + len(document) + 1, number + 1


def write_corpus(storage: Storage, num_sequences: int) -> CorpusManifest:
    """Documents one after the other in sequences, cut where these are full."""
    folder = Path(storage.path(layout.corpus_tokenizer("synthetic")))
    _make_tokenizer(folder)
    tokenizer = load_tokenizer(str(folder), "<eos>").entry
    documents = list(_list_documents(num_sequences * _LENGTH))
    flat = np.concatenate(documents)[: num_sequences * _LENGTH]
    owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])[: len(flat)]
    shards = []
    for index, first in enumerate(range(0, num_sequences, _SHARD_SEQUENCES)):
        num = min(_SHARD_SEQUENCES, num_sequences - first)
        rows = range(first * _LENGTH, (first + num) * _LENGTH, _LENGTH)
        columns = [
            pa.array(np.arange(first, first + num)),
            pa.array(["a"] * num).dictionary_encode(),
            pa.array([np.unique(owners[start : start + _LENGTH]) for start in rows]),
            pa.array(np.full(num, _LENGTH, dtype=np.int32)),
            pa.array([flat[start : start + _LENGTH] for start in rows]),
        ]
        table = pa.Table.from_arrays(columns, schema=make_schema(_VOCABULARY))
        shards.append(publish_shard(storage, "synthetic", "candidate", index, first, table))
    return describe_corpus("synthetic", tokenizer, _LENGTH - 1, tuple(shards))


def measure_side(side: str, root: str) -> dict[str, Any]:
    """One search in this process: seconds by the clock and of all threads, most resident memory, what was found."""
    storage = Storage(root)
    corpus = CorpusManifest.model_validate(storage.read_json(layout.corpus_manifest("synthetic")))
    texts = [" ".join(f"w{word}" for word in question) for question in _list_questions()]
    source = EvaluationSource("quiz", "made", lambda: (EvaluationItem(str(number), (text,)) for number, text in enumerate(texts)))

    def search() -> dict[str, int]:
        if side == "copies":
            copies = provide_copies(storage, corpus)
            return {"num_documents": copies.num_documents, "num_exact": copies.num_exact, "num_near": copies.num_near}
        contamination = provide_contamination(storage, corpus, [source])
        return {"num_found": sum(shard.num_sequences for shard in contamination.shards)}

    found, used = measure_work(search)
    num_tokens = sum(shard.num_tokens for shard in corpus.shards)
    microseconds = round(1e6 * used["cpu_seconds"] / num_tokens, 4)
    return {"side": side, **used, "num_tokens": num_tokens, "cpu_microseconds_a_token": microseconds, **found}


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("overlap", __doc__)
    parser.add_argument("--sequences", type=int, nargs="+", default=[20_000], help="candidate sequences of 1,025 tokens")
    parser.add_argument("--storage", help="storage root; default a folder that is deleted afterwards")
    add_sides(parser, SIDES)
    return parser


def _run(arguments: argparse.Namespace, scratch: Path) -> Rows:
    rows = []
    for num_sequences in arguments.sequences:
        root = f"{arguments.storage or scratch}/{num_sequences}"
        corpus = write_corpus(Storage(root), num_sequences)
        Storage(root).write_json(layout.corpus_manifest(corpus.corpus_id), corpus.as_json())
        place = describe_place(torch.device("cpu"))
        rows += [
            {"benchmark": "overlap", "size": f"{num_sequences:,}", **place, **measure_apart("overlap", ["--storage", root], side)}
            for side in arguments.sides
        ]
        Storage(root).delete("")
    print(format_rows(rows, "what", "side", "seconds", "CPU s", "host GiB"))
    for row in rows:
        print(json.dumps(row))
    return rows


if __name__ == "__main__":
    run_benchmark(_make_parser(), _run, lambda arguments: measure_side(arguments.measure, arguments.storage))
