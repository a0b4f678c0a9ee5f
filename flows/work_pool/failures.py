"""Reads from the message of a failed flow run whether another try could end otherwise."""

from __future__ import annotations

from miniplm.errors import find_error_class, is_lasting

_PREFIX = "Flow run encountered an exception: "


def strip_message(message: str | None) -> str:
    """The message without what Prefect puts before it."""
    return (message or "no message").removeprefix(_PREFIX)


def is_lasting_message(message: str | None) -> bool:
    """Whether a failed flow run's error is one that the same work gives again: a damaged input, another version."""
    name = strip_message(message).split(":", 1)[0].strip()
    kind = find_error_class(name.rsplit(".", 1)[-1])
    return kind is not None and is_lasting(kind(""))
