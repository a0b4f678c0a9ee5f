"""Compiled calls: a model that is left uncompiled is named, and another batch size is compiled for as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from miniplm.models import compilation
from miniplm.models.compilation import CompiledCall, compile_each_shape, fix_shape, vary_shape


class Layer(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, values: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
        return values * self.width + borders.sum()


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Counts graphs, of a compiler that leaves them as they are."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()


def run(call: CompiledCall, num_tokens: int, num_borders: int = 3) -> None:
    values, borders = torch.ones(1, num_tokens), torch.ones(num_borders)
    fix_shape(values)
    vary_shape(borders)
    call(values, borders)


def test_a_model_of_another_batch_size_has_a_graph_of_its_own_and_borders_have_none(counter: Any) -> None:
    first, second = CompiledCall(Layer(2), "first"), CompiledCall(Layer(3), "second")
    for num_borders in (3, 5, 9):
        run(first, 8, num_borders)
    assert counter.frame_count == 1
    for num_borders in (3, 5):
        run(second, 16, num_borders)
    run(first, 8)
    assert counter.frame_count == 2
    assert first.is_compiled
    assert second.is_compiled


def test_many_models_one_after_the_other_all_run_compiled(counter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_MOST_GRAPHS", 3)
    calls = [CompiledCall(Layer(width), str(width)) for width in range(8)]
    for call in calls:
        run(call, 8)
    assert all(call.is_compiled for call in calls)
    assert counter.frame_count >= len(calls)


def test_one_that_meets_the_limit_by_itself_says_that_it_runs_uncompiled(
    counter: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compilation, "_MOST_GRAPHS", 2)
    call = CompiledCall(Layer(2), "the teacher")
    with caplog.at_level(logging.WARNING, "miniplm"):
        for num_tokens in range(4, 14):
            run(call, num_tokens)
    assert not call.is_compiled
    (record,) = [record for record in caplog.records if record.name == "miniplm"]
    assert "torch.compile failed on the teacher" in record.message


def test_tiles_of_many_heads_are_all_compiled_once_for_each_shape(counter: Any) -> None:
    """They are one function to dynamo, which by itself gives up at the eighth graph and says nothing."""

    def make_tile(scale: float) -> Any:
        return compile_each_shape(lambda values, num_columns: (values * scale)[:, :num_columns])

    tiles = [make_tile(float(scale)) for scale in range(6)]
    for _ in range(2):
        for scale, tile in enumerate(tiles):
            for rows in (2, 3):
                torch.testing.assert_close(tile(torch.ones(rows, 4), 3), torch.full((rows, 3), float(scale)))
    assert counter.frame_count == 12
