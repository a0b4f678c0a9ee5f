"""Processes that tokenise: the same corpus as without them, and gone with whoever started them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from miniplm import layout
from miniplm.config.run import CorpusConfig, SplitsConfig
from miniplm.corpus import encoding_processes, file_encoding
from miniplm.corpus.encoding import EncodingRules, encode_parts
from miniplm.corpus.encoding_processes import EncodingProcesses, open_encoding
from miniplm.corpus.preparation import prepare_corpus
from miniplm.errors import EncodingProcessError
from miniplm.progress import Progress
from miniplm.sources.files import find_source_files
from miniplm.sources.parts import SourcePart
from miniplm.sources.reading import read_source_parts
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer
from tests.miniplm.corpus_fixtures import make_config, make_documents, read_tree, write_jsonl

RULES = EncodingRules(0, SplitsConfig(reference=0.2, heldout=0.1), {"candidate": 0, "reference": 0, "heldout": 3})


@pytest.fixture
def config(tmp_path: Path, tokenizer: str) -> CorpusConfig:
    for name in ("a", "b"):
        records = [*make_documents(60, seed=ord(name)), {"text": None}, {"text": "long " * 300, "domain": "a"}, *make_documents(9)]
        write_jsonl(tmp_path / f"in/{name}.jsonl", records)
    sources = {"path": f"{tmp_path}/in/*.jsonl", "domain": "domain"}
    return make_config(tokenizer, sources, sequence_length=40, splits={"reference": 0.2, "heldout": 0.1})


@pytest.fixture
def many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes for a corpus of a few kilobytes, and batches of a few documents."""
    monkeypatch.setattr(encoding_processes, "_BYTES_A_PROCESS", 1)
    monkeypatch.setattr(encoding_processes, "count_cores", lambda: 2)
    monkeypatch.setattr(file_encoding, "_BATCH_BYTES", 1)
    monkeypatch.setattr("miniplm.sources.blocks._BLOCK_BYTES", 800)


def list_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "encoding_main" in " ".join(child.cmdline())]


def read_parts(config: CorpusConfig) -> Iterator[list[SourcePart]]:
    (source,) = config.sources
    first = 0
    for file in find_source_files(source):
        parts = list(read_source_parts(file, source, first, 0, lambda num_bytes: None))
        first += sum(part.num_records for part in parts)
        yield parts


def test_processes_make_the_corpus_that_a_thread_makes(
    config: CorpusConfig, tmp_path: Path, many_processes: None, monkeypatch: pytest.MonkeyPatch
):
    seen: list[int] = []

    def watch(progress: Progress) -> None:
        if not seen:
            seen.append(len(list_children()))

    roots = [Storage(str(tmp_path / name)) for name in ("processes", "thread")]
    corpus_id = prepare_corpus(roots[0], config, watch).corpus_id
    monkeypatch.setattr(encoding_processes, "count_cores", lambda: 1)
    prepare_corpus(roots[1], config)
    first, second = (read_tree(root, layout.corpus_folder(corpus_id)) for root in roots)
    assert first == second
    assert seen == [2]
    assert list_children() == []


def test_what_a_process_answers_is_what_this_one_would(config: CorpusConfig, monkeypatch: pytest.MonkeyPatch):
    tokenizer = load_tokenizer(config.tokenizer)
    monkeypatch.setattr(encoding_processes, "_LARGEST_SENT", 6000)  # some batches are sent, some stay here
    batches = list(read_parts(config))
    with EncodingProcesses(tokenizer, RULES, 1) as processes:
        answers = [future.result() for future in [processes.submit(parts) for parts in batches]]
        (process,) = list_children()
        # One file with a reader's mistake: it is told as it would be here.
        broken = SourcePart("x.parquet", config.sources[0].model_copy(update={"format": "parquet"}), 0, 0, 1, 0, None, 1)
        with pytest.raises(AttributeError) as raised:
            processes.submit([broken]).result()
        assert "In a process that tokenises" in raised.value.__notes__[0]
        # Killed in the middle of a file: an error that names it, not an answer that never comes.
        monkeypatch.setattr(encoding_processes, "_LARGEST_SENT", 1 << 20)
        process.kill()
        with pytest.raises(EncodingProcessError, match=r"ended by signal 9 \(SIGKILL.*a\.jsonl, from line 1 on.*is kept"):
            processes.submit(batches[0][:1]).result()
        # Another part of the corpus, or another try, finds a new process.
        assert processes.submit(batches[0]).result().token_ids.tolist() == answers[0].token_ids.tolist()
        assert len(list_children()) == 1
    assert list_children() == []
    for parts, answer in zip(batches, answers, strict=True):
        expected = encode_parts(parts, RULES, tokenizer.encode_documents)
        assert answer.token_ids.tolist() == expected.token_ids.tolist()
        for name in ("document_ids", "splits", "domains", "num_bytes", "num_tokens", "rejections", "num_documents"):
            assert getattr(answer, name) == getattr(expected, name)


def test_a_small_corpus_starts_no_process(config: CorpusConfig):
    tokenizer = load_tokenizer(config.tokenizer)
    with open_encoding(tokenizer, RULES, 1 << 20):
        assert list_children() == []


def work_until_interrupted(config: CorpusConfig) -> None:
    with EncodingProcesses(load_tokenizer(config.tokenizer), RULES, 2) as processes:
        first, second = list_children()
        assert os.getpgid(first.pid) != os.getpgid(0)  # Ctrl-C in a terminal reaches the group of this process alone
        gone = next(process for process in processes._processes if process._process.pid == first.pid)
        gone._connection.close()  # as the kernel does it when this process is killed
        assert first.wait(60) == 0
        assert second.is_running()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)


def test_processes_end_when_the_one_that_asks_is_gone_or_interrupted(config: CorpusConfig):
    with pytest.raises(KeyboardInterrupt):
        work_until_interrupted(config)
    assert list_children() == []
