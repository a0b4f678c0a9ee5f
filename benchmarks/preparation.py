"""Speed of preparing a corpus, beside the tokenizer alone and what others do with the same files.

Sides, each a process of its own on as many cores as `--cores` says (those it starts share them), repeated in turn; the least seconds count:

    tokenizer    `encode_batch_fast` of the tokenizers library over the texts, on all of these cores: no files, no ids taken out
    words        what `ours` takes in its place, one core of it: words that were met before are looked up; gigatoken: that library
    ours         `prepare_corpus`: compressed files to published shards, with digests of the files, splits and quarantine
    packing      what of `ours` is left to the parent of a fleet whose workers tokenise: token parts, made before the clock starts, to shards
    ours-gigatoken    the same with `corpus.encoder: gigatoken`, where that is installed (it refuses a tokenizer that lacks a byte)
    published    the arithmetic of the published script: a pool of processes, `json.loads` and one call of a transformers tokenizer a
                 document, Python lists cut at the last sentence end, rows of a binary file
    megatron     the arithmetic of Megatron's `preprocess_data`: the same pool, an indexed file of documents, nothing packed
    datatrove    its `DocumentTokenizer` step over its `JsonlReader`; by one process a file

MB are 10^6 bytes of UTF-8 text. CPU seconds are those of all processes of a side; where other work shares the cores, only they can be compared.
The text is what `--text` names (JSON Lines with a field `text`), else made of the words of samples/demo: few and often the same, which favours
`ours`, as a real text has new words all along.

    python -m benchmarks.preparation --text texts.jsonl --cores 1 2 16
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.preparation_inputs import make_tokenizer_folder, read_texts, write_sources
from benchmarks.records import (
    Rows,
    add_sides,
    describe_place,
    format_rows,
    make_parser,
    measure_apart,
    measure_work,
    repeat_sides,
    run_benchmark,
)
from miniplm.config.run import CorpusConfig, EncoderName
from miniplm.corpus.part_making import open_part_making
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.token_parts import MakeParts, PartFiles, PartsFolder, PartsPlan, TokenPart
from miniplm.progress import ignore_progress
from miniplm.storage.root import Storage
from miniplm.tokenizers.encoders import make_encoder

# Where set-up puts datatrove, after all else: it is there for the tests of exports (scripts/readers.txt).
sys.path.append(str(Path(sys.prefix) / "readers"))
_SEQUENCE_LENGTH = 1024
_SENTENCE_ENDS = (".", "!", "?", ";", "\n")


def _make_config(folder: Path, encoder: str = "tokenizers") -> CorpusConfig:
    return CorpusConfig.model_validate(
        {
            "sources": [{"path": f"{folder}/*.jsonl.gz", "domain_name": "text"}],
            "tokenizer": str(folder / "tokenizer"),
            "encoder": encoder,
            "sequence_length": _SEQUENCE_LENGTH,
            "sequences_per_shard": 8192,
        }
    )


def prepare_ours(folder: Path, cores: int, encoder: str = "tokenizers", make_parts: MakeParts | None = None) -> int:
    manifest = prepare_corpus(Storage(str(folder / "root")), _make_config(folder, encoder), make_parts=make_parts)
    return sum(shard.num_tokens for shard in manifest.shards)


class _MadeError(Exception):
    """The parts are there."""


def make_token_parts(folder: Path) -> None:
    """Lays down what the workers of a fleet would."""

    def make(parts: PartsFolder, plan: PartsPlan, files: PartFiles, indices: range) -> Generator[TokenPart]:
        with open_part_making(parts.storage, parts.corpus_id, plan.plan_id, _make_config(folder), indices, "here") as making:
            for index in indices:
                making.make(index, ignore_progress)
        raise _MadeError
        yield

    with suppress(_MadeError):
        prepare_ours(folder, 1, make_parts=make)


def pack_parts(folder: Path, cores: int) -> int:
    def find(parts: PartsFolder, plan: PartsPlan, files: PartFiles, indices: range) -> Generator[TokenPart]:
        for index in indices:
            part = parts.find_part(index)
            assert part is not None
            yield part

    return prepare_ours(folder, cores, make_parts=find)


def tokenize_alone(folder: Path, cores: int) -> int:
    backend = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    backend.encode_special_tokens = True
    num_tokens, batch = 0, []
    for text in read_texts(folder):
        batch.append(text)
        if len(batch) == 1000:
            num_tokens += sum(len(encoding) + 1 for encoding in backend.encode_batch_fast(batch, add_special_tokens=False))
            batch = []
    return num_tokens + sum(len(encoding) + 1 for encoding in backend.encode_batch_fast(batch, add_special_tokens=False))


def encode_by_ours(folder: Path, cores: int, encoder: EncoderName = "tokenizers") -> int:
    backend = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    encode = make_encoder(backend, encoder)
    return sum(len(encode([text])[0]) + 1 for text in read_texts(folder))


_pool_tokenizer: Any = None


def _start_pool(folder: str) -> None:
    global _pool_tokenizer
    from transformers import PreTrainedTokenizerFast

    _pool_tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)


def _encode_line(line: str) -> list[int]:
    ids: list[int] = _pool_tokenizer.encode(json.loads(line)["text"], add_special_tokens=False, split_special_tokens=True)
    return [*ids, _pool_tokenizer.eos_token_id]


def _encode_in_pool(folder: Path, cores: int) -> Iterator[list[int]]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(cores, initializer=_start_pool, initargs=(str(folder / "tokenizer"),)) as pool:
        for path in sorted(folder.glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as file:
                yield from pool.imap(_encode_line, file, chunksize=32)


def prepare_as_published(folder: Path, cores: int) -> int:
    _start_pool(str(folder / "tokenizer"))
    texts = _pool_tokenizer.batch_decode([[i] for i in range(len(_pool_tokenizer))])
    ends = {index for index, text in enumerate(texts) if any(sign in text for sign in _SENTENCE_ENDS)}
    num_tokens, buffer = 0, []
    with open(folder / "published.bin", "wb") as out:
        for ids in _encode_in_pool(folder, cores):
            buffer += ids
            while len(buffer) > _SEQUENCE_LENGTH + 1:
                cut = next((i + 1 for i in range(_SEQUENCE_LENGTH, 0, -1) if buffer[i] in ends), _SEQUENCE_LENGTH + 1)
                out.write(np.array(buffer[:cut], dtype=np.uint16).tobytes())
                buffer, num_tokens = buffer[cut:], num_tokens + cut
    return num_tokens + len(buffer)


def prepare_as_megatron(folder: Path, cores: int) -> int:
    lengths = []
    with open(folder / "megatron.bin", "wb") as out:
        for ids in _encode_in_pool(folder, cores):
            out.write(np.array(ids, dtype=np.uint16).tobytes(order="C"))
            lengths.append(len(ids))
    np.array(lengths, dtype=np.int32).tofile(folder / "megatron.idx")
    return sum(lengths)


def prepare_by_datatrove(folder: Path, cores: int) -> int:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokens = folder / "datatrove"
    steps = [
        JsonlReader(str(folder), glob_pattern="*.jsonl.gz"),
        DocumentTokenizer(
            str(tokens),
            tokenizer_name_or_path=str(folder / "tokenizer/tokenizer.json"),
            eos_token="<|endoftext|>",
            shuffle_documents=False,
        ),
    ]
    files = len(list(folder.glob("*.jsonl.gz")))
    LocalPipelineExecutor(
        steps, tasks=files, workers=min(cores, files), logging_dir=str(folder / "logs"), start_method="fork"
    ).run()
    return sum(path.stat().st_size for path in tokens.rglob("*.ds")) // 2


SIDES: dict[str, Callable[[Path, int], int]] = {
    "tokenizer": tokenize_alone,
    "words": encode_by_ours,
    "gigatoken": partial(encode_by_ours, encoder="gigatoken"),
    "ours": prepare_ours,
    "packing": pack_parts,
    "ours-gigatoken": partial(prepare_ours, encoder="gigatoken"),
    "published": prepare_as_published,
    "megatron": prepare_as_megatron,
    "datatrove": prepare_by_datatrove,
}


_NEEDS = {"gigatoken": "gigatoken", "ours-gigatoken": "gigatoken", "datatrove": "datatrove"}


def measure_side(side: str, folder: Path, cores: int) -> dict[str, Any]:
    """One side, started and ended, in this process and those that it starts."""
    if side == "packing":
        make_token_parts(folder)
    num_tokens, used = measure_work(lambda: SIDES[side](folder, cores))
    children = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 3)
    return {"side": side, "num_cores": cores, "num_tokens": num_tokens, **used, "process_memory_gib": children}


def _measure_on_cores(arguments: argparse.Namespace) -> dict[str, Any]:
    (cores,) = arguments.cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    return measure_side(arguments.measure, arguments.folder, cores)


def _measure_anew(folder: Path, cores: int, side: str) -> dict[str, Any]:
    for name in ("root", "datatrove", "logs"):
        Storage(str(folder)).delete(name)
    return {"num_cores": cores} | measure_apart("preparation", ["--folder", str(folder), "--cores", str(cores)], side)


def add_rates(rows: list[dict[str, Any]], num_text_bytes: int) -> None:
    """MB and tokens a second, and of how much the tokenizer alone does on as many cores, by the clock and by CPU time."""
    for row in rows:
        if "seconds" not in row:
            continue
        row["text_mb"] = round(num_text_bytes / 1e6, 3)
        row["mb_per_second"] = num_text_bytes / 1e6 / row["seconds"]
        row["mb_per_cpu_second"] = num_text_bytes / 1e6 / row["cpu_seconds"]
        row["tokens_per_second"] = row["num_tokens"] / row["seconds"]
        alone = [
            other for other in rows if (other["side"], other["num_cores"]) == ("tokenizer", row["num_cores"]) and "seconds" in other
        ]
        if alone:
            row["ratio_to_tokenizer"] = alone[0]["seconds"] / row["seconds"]
            row["cpu_ratio_to_tokenizer"] = alone[0]["cpu_seconds"] / row["cpu_seconds"]


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("preparation", __doc__)
    parser.add_argument(
        "--text", type=Path, help="JSON Lines with a field `text`; default made of samples/demo, as large as --megabytes"
    )
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--files", type=int, default=4, help="compressed files that the text is written to")
    parser.add_argument("--tokenizer", type=Path, default=Path("models/smollm2-135m"), help="folder with a tokenizer.json")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    add_sides(parser, SIDES, [side for side in SIDES if side not in _NEEDS or find_spec(_NEEDS[side])])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def _run(arguments: argparse.Namespace, scratch: Path) -> Rows:
    make_tokenizer_folder(arguments.tokenizer, scratch / "tokenizer")
    num_text_bytes = write_sources(scratch, arguments.text, arguments.megabytes * 1_000_000, arguments.files)
    rows = []
    for cores in arguments.cores:
        if cores > len(os.sched_getaffinity(0)):
            print(f"{cores} cores: this machine has {len(os.sched_getaffinity(0))}", file=sys.stderr)
            continue
        place = describe_place(torch.device("cpu"))
        found = repeat_sides(arguments.sides, arguments.repeats, partial(_measure_anew, scratch, cores))
        rows += [{"benchmark": "preparation", "size": f"{cores} cores", **place, **row} for row in found]
    add_rates(rows, num_text_bytes)
    columns = ("what", "side", "seconds", "CPU s", "MB/s", "MB/CPU s", "tokens/s", "x tokenizer", "x tokenizer, CPU", "host GiB")
    print(format_rows(rows, *columns))
    return rows


if __name__ == "__main__":
    run_benchmark(_make_parser(), _run, _measure_on_cores)
