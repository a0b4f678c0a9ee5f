"""Processes that parse and tokenise batches of records, and the thread that does it where processes would not pay.

A process has the end of a pipe and nothing else of this one: where this one is killed it finds the pipe closed, and ends.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Pipe
from threading import Lock
from typing import Protocol

from miniplm.cores import count_cores
from miniplm.corpus.encoding import EncodedDocuments, EncodingRules, encode_parts
from miniplm.errors import EncodingProcessError, list_offenders
from miniplm.sources.parts import SourcePart
from miniplm.tokenizers.tokenizer import CorpusTokenizer

# A process takes a second of a core to start, in which it would tokenise about so much.
_BYTES_A_PROCESS = 12 << 20
# One process reads and packs for all of them: more would wait for it.
_MOST_PROCESSES = 32
# A larger batch, which is one document, stays in this process: sent away, it would be in memory twice more.
_LARGEST_SENT = 64 << 20
# As `multiprocessing` does it: the modules of the new process are those of this one, wherever they lie. The process is one core's worth,
# so the tokenizers library starts no threads in it.
_MAIN = (
    "import os, sys; os.environ['TOKENIZERS_PARALLELISM'] = 'false'; sys.path[:] = {path!r}; "
    "from miniplm.corpus.encoding_main import main; main({descriptor})"
)


class Encoding(Protocol):
    """Where batches are tokenised; `num_ahead` of them may wait to be taken."""

    num_ahead: int

    def submit(self, parts: Sequence[SourcePart]) -> Future[EncodedDocuments]: ...


@contextmanager
def open_encoding(tokenizer: CorpusTokenizer, rules: EncodingRules, num_bytes: int) -> Iterator[Encoding]:
    """Processes, as many as there are cores and as `num_bytes` of records are worth, or a thread; they are gone when it closes."""
    num_processes = count_processes(tokenizer, num_bytes)
    if num_processes == 0:
        with _InThread(tokenizer, rules) as encoding:
            yield encoding
    else:
        with EncodingProcesses(tokenizer, rules, num_processes) as processes:
            yield processes


def count_processes(tokenizer: CorpusTokenizer, num_bytes: int) -> int:
    """How many processes tokenise so many bytes of records; none where a thread does it."""
    num_processes = min(count_cores(), _MOST_PROCESSES, num_bytes // _BYTES_A_PROCESS)
    # A tokenizer in Python cannot be sent to another process as tokenizer.json can.
    return num_processes if num_processes > 1 and tokenizer.backend is not None else 0


class _InThread:
    """One thread of this process: a batch is tokenised while the one before it is packed."""

    num_ahead = 1

    def __init__(self, tokenizer: CorpusTokenizer, rules: EncodingRules) -> None:
        self._rules = rules
        self._encode = tokenizer.choose_encoder(rules.encoder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def submit(self, parts: Sequence[SourcePart]) -> Future[EncodedDocuments]:
        return self._thread.submit(encode_parts, parts, self._rules, self._encode)

    def __enter__(self) -> _InThread:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


class EncodingProcesses(_InThread):
    """Processes of one core each; a thread of this process waits for the answer of each, and wakes when it has come whole."""

    def __init__(self, tokenizer: CorpusTokenizer, rules: EncodingRules, num_processes: int) -> None:
        super().__init__(tokenizer, rules)
        self.num_ahead = 2 * num_processes
        self._setup = pickle.dumps((tokenizer.backend.to_str(), tokenizer.entry.name, rules))
        self._processes: list[_Process] = []
        self._replacing = Lock()
        self._is_open = True
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="encoding-process")
        try:
            for _ in range(num_processes):
                self._processes.append(_Process())
                self._free.put(self._processes[-1])
        except BaseException:
            self.__exit__()
            raise

    def submit(self, parts: Sequence[SourcePart]) -> Future[EncodedDocuments]:
        if sum(part.num_bytes for part in parts) > _LARGEST_SENT:
            return super().submit(parts)
        return self._threads.submit(partial(self._ask, parts))

    def _ask(self, parts: Sequence[SourcePart]) -> EncodedDocuments:
        process = self._free.get()
        try:
            if process.is_lost:
                process = self._replace(process)
            return process.ask(self._setup, parts)
        finally:
            self._free.put(process)

    def _replace(self, lost: _Process) -> _Process:
        """A new process in the place of one that died: several parts of a corpus share these, and another try is to find one that lives."""
        with self._replacing:
            if not self._is_open:
                return lost
            fresh = _Process()
            self._processes[self._processes.index(lost)] = fresh
        lost.end()
        return fresh

    def __exit__(self, *_: object) -> None:
        with self._replacing:
            self._is_open = False
        # Ended before their threads are waited for, which else would wait for the answers.
        for process in self._processes:
            process.end()
        self._threads.shutdown(wait=True, cancel_futures=True)
        super().__exit__()


class _Process:
    def __init__(self) -> None:
        self._connection, other = Pipe()
        try:
            # -P: whatever the working folder holds is no module of ours.
            command = [sys.executable, "-P", "-c", _MAIN.format(path=sys.path, descriptor=other.fileno())]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # of ours it is the user's; what goes wrong is told on stderr
                pass_fds=[other.fileno()],
                process_group=0,  # Ctrl-C in the terminal is ours to pass on
            )
        except BaseException:
            self._connection.close()
            raise
        finally:
            other.close()
        self._is_set_up = False
        self.is_lost = False

    def ask(self, setup: bytes, parts: Sequence[SourcePart]) -> EncodedDocuments:
        try:
            if not self._is_set_up:
                self._connection.send_bytes(setup)
                self._is_set_up = True
            self._connection.send_bytes(pickle.dumps(parts, protocol=5))
            answer = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            self.is_lost = True
            raise self._explain(parts) from error
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, EncodedDocuments)
        return answer

    def _explain(self, parts: Sequence[SourcePart]) -> EncodingProcessError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)  # the pipe is closed a moment before the process is gone
        code = self._process.returncode
        how = f"was ended by signal {-code} ({_name_signal(-code)})" if code is not None and code < 0 else f"ended ({code})"
        hint = ", as the kernel does where memory runs out; `dmesg` tells" if code == -signal.SIGKILL else ""
        first = parts[0]
        return EncodingProcessError(
            f"a process that tokenises (pid {self._process.pid}) {how}{hint} while it had {list_offenders(dict.fromkeys(part.path for part in parts))}, "
            f"from {'row' if first.source.format == 'parquet' else 'line'} {first.first_number} on. What was prepared is kept: run the same command again"
        )

    def end(self) -> None:
        """It has nothing to finish: its answers are no longer wanted."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


def _name_signal(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), "unknown")
