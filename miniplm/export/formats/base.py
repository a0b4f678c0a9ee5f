"""What a format is: how a part's files are named, written and read back, and which files the whole needs besides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from miniplm.export.records import ExportedPart, ExportManifest
from miniplm.export.rows import Row


@dataclass(frozen=True)
class FileFacts:
    """What the files of an export have in common. `dtype` is of token ids; `with_scores`: rows are sequences as they were scored;
    `with_mask`: they say which tokens are targets."""

    dtype: str
    tokenizer_name: str
    vocab_size: int
    eos_token_id: int
    compression: str
    with_scores: bool
    with_mask: bool = False


def mark_targets(token_ids: NDArray[Any], eos_token_id: int) -> NDArray[np.bool_]:
    """Which tokens of a row (num_tokens,) something before it could predict, as in scoring: neither its first, nor what follows an EOS; (num_tokens,)."""
    return np.append(False, token_ids[:-1] != eos_token_id)[: len(token_ids)]


class PartWriter(ABC):
    """Takes the rows of a part; its files are complete when the block ends."""

    @abstractmethod
    def add(self, row: Row) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Writes what is left."""

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Format(ABC):
    """A format. All its files are made here, by what its own library reads: docs/export.md says why."""

    holds_text: ClassVar[bool] = False
    # Token ids in its files where the vocabulary has at most 65,536 ids, and where it has more.
    dtypes: ClassVar[tuple[str, str]] = ("uint16", "uint32")

    @abstractmethod
    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        """The paths of a part's files below the target, with `/`."""

    def list_masks(self, part_index: int) -> tuple[str, ...]:
        """The file of a part's loss mask, which comes after the others; none where it is in one of these."""
        return ()

    @abstractmethod
    def open(self, paths: Sequence[Path], facts: FileFacts) -> PartWriter: ...

    @abstractmethod
    def read(self, paths: Sequence[Path], facts: FileFacts) -> Iterator[str | NDArray[Any]]:
        """The rows of a part out of its files: texts, or token ids (num_tokens,)."""

    def finish(self, parts: Sequence[ExportedPart], facts: FileFacts, manifest: ExportManifest) -> dict[str, bytes]:
        """Files of the whole, which are published after all others."""
        return {}
