"""Whether the command that runs was asked to tell all."""

from __future__ import annotations

_verbose = False


def set_verbose(verbose: bool) -> None:
    """Says it for the rest of this process."""
    global _verbose
    _verbose = verbose


def is_verbose() -> bool:
    """Whether the command that runs was asked to tell all."""
    return _verbose
