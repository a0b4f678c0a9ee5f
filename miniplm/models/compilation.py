"""torch.compile with a way back: what does not compile runs as it is, more slowly, and says so once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from miniplm.errors import first_line
from miniplm.models.devices import is_device_lost, is_out_of_memory

_log = logging.getLogger("miniplm")


class CompiledCall:
    """A function or module under torch.compile; from the first failure on as it is. `name` is what the warning calls it.

    What is wrong with the function itself, the uncompiled call raises again.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function = function
        self._name = name
        self._compiled: Callable[..., Any] | None = torch.compile(function)

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._compiled is not None:
            try:
                return self._compiled(*arguments, **named)
            except Exception as error:
                if is_out_of_memory(error) or is_device_lost(error):
                    raise
                self._compiled = None
                _log.warning(f"torch.compile failed on {self._name} ({first_line(error)}); it runs uncompiled, more slowly")
        return self._function(*arguments, **named)
