"""How long-running work reports its progress: by one callback that the caller gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A moment of a long piece of work.

    `done` and `total` count `unit` ("tokens", "steps", "documents", "bytes"); `total` is None where it is not
    known. `key` names the piece of work, the same in all its moments; `detail` is a short remark for people.
    """

    key: str
    done: float
    total: float | None
    unit: str
    detail: str = ""


ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """The callback of nobody watching."""
