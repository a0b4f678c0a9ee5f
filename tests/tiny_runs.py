"""A whole run in small: a trained tokenizer, a random teacher, some hundred documents of four domains; seconds, not minutes."""

from __future__ import annotations

import fcntl
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerFast

from scripts.demo_corpus import train_tokenizer
from tests.miniplm.corpus_fixtures import write_jsonl
from tests.miniplm.made_models import make_llama, save_model

DOMAINS = ("news", "code", "verse", "letters")

_WORDS = "the of and to in that is was he for it with as his on be at by had not are but from or have an they which one you were"


def make_documents(num: int = 240, seed: int = 0) -> list[dict[str, Any]]:
    """Documents of 20 to 120 words; each domain has words of its own."""
    rng = random.Random(seed)
    own = {
        domain: ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(60)] for domain in DOMAINS
    }
    documents = []
    for index in range(num):
        domain = DOMAINS[index % len(DOMAINS)]
        words = rng.choices(_WORDS.split() + own[domain], k=rng.randint(20, 120))
        sentences = [" ".join(words[start : start + 9]) + rng.choice([".", ".", "?", "\n"]) for start in range(0, len(words), 9)]
        documents.append({"text": " ".join(sentences), "meta": {"domain": domain}})
    return documents


def make_tokenizer(folder: Path, documents: list[dict[str, Any]], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the documents, saved in a folder."""
    train_tokenizer([document["text"] for document in documents], folder, vocab_size)
    return PreTrainedTokenizerFast.from_pretrained(str(folder))


def make_teacher(folder: Path, vocab_size: int, seed: int = 0, num_layers: int = 2) -> Path:
    """A random model, saved in a folder beside what is there."""
    return save_model(make_llama(seed, vocab_size, 256, num_layers, initializer_range=0.3), folder)


def make_tiny_run(folder: Path, name: str = "tiny", sequences_per_shard: int = 64, **changes: Any) -> Path:
    """Writes sources, models and `config.yaml` below a folder; `changes` replace top-level sections. Returns the config's path.

    A model has a dozen candidate shards; a test that needs more makes them smaller. Trainings are inline, which saves seconds each, unless `execution` among the changes says otherwise.
    """
    documents = make_documents()
    write_jsonl(folder / "sources" / "a.jsonl", documents[:120])
    write_jsonl(folder / "sources" / "b.jsonl", documents[120:])
    tokenizer = make_tokenizer(folder / "teacher", documents)
    make_teacher(folder / "teacher", len(tokenizer))
    training = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2, "checkpoint_every_steps": 2}
    config: dict[str, Any] = {
        "name": name,
        "storage": str(folder / "data"),
        "corpus": {
            "sources": [{"path": str(folder / "sources" / "*.jsonl"), "domain": "meta.domain"}],
            "tokenizer": str(folder / "teacher"),
            "sequence_length": 64,
            "sequences_per_shard": sequences_per_shard,
            "splits": {"reference": 0.3, "heldout": 0.1},
        },
        # float32: scores are held against float64, and `auto` is bfloat16 on some CPUs.
        "teacher": {"model": str(folder / "teacher"), "dtype": "float32"},
        "reference": {"architecture": "qwen-tiny", "training": training, "dtype": "float32"},
        "students": [
            {"name": "miniplm", "architecture": "qwen-tiny", "method": "miniplm", "training": training},
            {"name": "pretrain", "architecture": "qwen-tiny", "method": "pretrain", "training": training},
        ],
    } | changes
    config["execution"] = {"launcher": "inline", **config.get("execution", {})}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    # As old as a user's files are: what was written to just now is looked at again each time.
    then = time.time() - 60
    for file in [*(folder / "sources").iterdir(), *(folder / "teacher").iterdir()]:
        os.utime(file, (then, then))
    return path


@dataclass(frozen=True)
class FinishedRun:
    """A whole tiny run: `config` of which `data` beside it is the storage root, and what it printed."""

    config: Path
    stdout: str
    stderr: str

    @property
    def data(self) -> Path:
        return self.config.parent / "data"


def share_finished_run(folder: Path, prefect: Mapping[str, str]) -> FinishedRun:
    """The finished run of a folder that processes share, made by the first that asks. None changes it: what is to be changed is copied."""
    from tests.command_line import run_miniplm

    root = folder / "finished-run"
    with open(folder / "finished-run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "said.json").exists():
            result = run_miniplm("run", str(make_tiny_run(root)), prefect=prefect)
            assert result.returncode == 0, result.stderr + result.stdout
            (root / "said.json").write_text(json.dumps([result.stdout, result.stderr]))
    return FinishedRun(root / "config.yaml", *json.loads((root / "said.json").read_text()))
