"""torch.compile with a way back: what does not compile runs as it is, more slowly, and says so once.

Shapes: N rows, of any shape.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from miniplm.errors import first_line
from miniplm.models.devices import is_device_lost, is_out_of_memory

_log = logging.getLogger("miniplm")

# Graphs of one function before dynamo gives up on it. All models of a family are one function to it, and its own limit of 8
# is met by a teacher, a reference and a few shapes; from then on it runs everything uncompiled and says nothing.
_MOST_GRAPHS = 64


class CompiledCall:
    """A function or module under torch.compile; from the first failure on as it is. `name` is what the warning calls it.

    What is wrong with the function itself, the uncompiled call raises again. `say` is given the warning. With `fixes_shapes`
    each shape of its tensors is compiled for by itself (`fix_shape`).
    """

    def __init__(
        self, function: Callable[..., Any], name: str, say: Callable[[str], None] = _log.warning, fixes_shapes: bool = False
    ) -> None:
        self._fixes_shapes = fixes_shapes
        self._function = function
        self._name = name
        self._say = say
        self._compiled: Callable[..., Any] | None = torch.compile(function)
        # Once: a call that needs more graphs than the limit by itself would else compile and forget for ever.
        self._may_forget = True

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._fixes_shapes and self._compiled is not None:
            for argument in (*arguments, *named.values()):
                if isinstance(argument, Tensor):
                    fix_shape(argument)
        while self._compiled is not None:
            try:
                with torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS, fail_on_recompile_limit_hit=True):
                    return self._compiled(*arguments, **named)
            except Exception as error:
                if is_out_of_memory(error) or is_device_lost(error):
                    raise
                if self._may_forget and "RecompileLimit" in type(error).__name__:
                    # Most likely graphs of models that are gone; what is still in use is compiled once more.
                    self._may_forget = False
                    torch._dynamo.reset()
                    continue
                self._compiled = None
                self._say(f"torch.compile failed on {self._name} ({first_line(error)}); it runs uncompiled, more slowly")
        return self._function(*arguments, **named)


def compile_each_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function under torch.compile, compiled for each shape of its tensors by itself. What does not compile is raised."""
    compiled = torch.compile(function, dynamic=False)
    seen: set[tuple[Any, ...]] = set()

    def run(*arguments: Any) -> Any:
        key = tuple(argument.shape if isinstance(argument, Tensor) else argument for argument in arguments)
        if key in seen:
            return compiled(*arguments)
        # Functions of one text share dynamo's limit, however many heads and tiles they are made for.
        with torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS, fail_on_recompile_limit_hit=True):
            result = compiled(*arguments)
        seen.add(key)
        return result

    return run


def fix_shape(tensor: Tensor) -> None:
    """Has a tensor's shape, (...) of any rank, compiled for as it is: a model whose batches have another size is then no reason to compile for any size."""
    torch._dynamo.mark_static(tensor)


def vary_shape(tensor: Tensor) -> None:
    """Has the first dimension of a tensor (N, ...) compiled for any size, at once.

    `maybe`: where the code itself fixes that size, it is compiled for that one; `mark_dynamic` would raise.
    """
    torch._dynamo.maybe_mark_dynamic(tensor, 0)
