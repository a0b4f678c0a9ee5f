"""Reads from the message of a failed flow run whether another try could end otherwise."""

from __future__ import annotations

from miniplm.errors import DamagedSourceError, find_error_class, is_lasting

_PREFIX = "Flow run encountered an exception: "


def strip_message(message: str | None) -> str:
    """The message without what Prefect puts before it."""
    return (message or "no message").removeprefix(_PREFIX)


def is_lasting_message(message: str | None) -> bool:
    """Whether a failed flow run's error is one that the same work gives again: a damaged input, another version."""
    kind, _ = _split(message)
    return kind is not None and is_lasting(kind(""))


def find_source_fault(message: str | None) -> DamagedSourceError | None:
    """The error of a failed flow run where what a source file holds is at fault: the same as without a fleet."""
    kind, text = _split(message)
    return kind(text) if kind is not None and issubclass(kind, DamagedSourceError) else None


def _split(message: str | None) -> tuple[type[Exception] | None, str]:
    """The class of the error, where it is one of this package, and what it says."""
    name, _, text = strip_message(message).partition(":")
    return find_error_class(name.strip().rsplit(".", 1)[-1]), text.strip()
