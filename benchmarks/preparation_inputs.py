"""Texts for the benchmark of preparation, as compressed files, and the tokenizer that all sides take."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import zstandard

_SAMPLES = Path("samples/demo")


def read_texts(folder: Path) -> Iterator[str]:
    """The texts of the files that `write_sources` wrote, in order."""
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def write_sources(folder: Path, text: Path | None, num_bytes: int, num_files: int) -> int:
    """Writes about `num_bytes` of the texts of a file, or of made ones, to gzip files; gives the bytes of UTF-8 text in them."""
    texts = _make_texts() if text is None else _read_file(text)
    written = 0
    for index in range(num_files):
        target = num_bytes * (index + 1) // num_files
        with gzip.open(folder / f"text-{index:03}.jsonl.gz", "wt", encoding="utf-8", compresslevel=3) as file:
            while written < target and (content := next(texts, None)) is not None:
                written += len(content.encode())
                file.write(json.dumps({"text": content}, ensure_ascii=False) + "\n")
    return written


def make_tokenizer_folder(source: Path, folder: Path) -> None:
    """The tokenizer alone, without the model's weights, with `<|endoftext|>` as its EOS where it names none."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja", ".txt", ".model"):
            shutil.copy(path, folder / path.name)
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text()) if settings_path.exists() else {}
    settings_path.write_text(json.dumps({"eos_token": "<|endoftext|>", **settings}))


def _read_file(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def _make_texts() -> Iterator[str]:
    """Texts without end: those of the demo, with one word in twenty replaced by one of another text, or by a new one."""
    originals = [
        json.loads(line)["text"]
        for path in sorted(_SAMPLES.glob("*.jsonl.zst"))
        for line in zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read().splitlines()
    ]
    rng = random.Random(0)
    words = [word for text in originals for word in text.split(" ")]
    while True:
        parts = rng.choice(originals).split(" ")
        for index in range(0, len(parts), 20):
            word = rng.choice(words)
            parts[index] = word if rng.random() < 0.7 else word[: len(word) // 2] + rng.choice(words)
        yield " ".join(parts)
