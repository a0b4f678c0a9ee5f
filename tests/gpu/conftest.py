"""Tests that may hang a device run only where they are asked for by name: `-m "gpu and risky"`."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "risky" in config.option.markexpr:
        return
    not_asked_for = pytest.mark.skip(reason='may hang the device: run it by itself, with -m "gpu and risky"')
    for item in items:
        if item.get_closest_marker("risky"):
            item.add_marker(not_asked_for)
