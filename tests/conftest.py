"""What every test gets: those whose parts are not on this machine are skipped, and say what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ASSETS = (ROOT / "models" / "smollm2-135m" / "model.safetensors", ROOT / "samples" / "demo" / "SOURCES.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [str(path.relative_to(ROOT)) for path in ASSETS if not path.exists()]
    no_assets = pytest.mark.skip(reason=f"{', '.join(missing)} not there: run `make assets` (`make test` does)")
    no_device = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if missing and item.get_closest_marker("real"):
            item.add_marker(no_assets)
        if item.get_closest_marker("gpu") and not has_cuda():
            item.add_marker(no_device)


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for Prefect's database over the whole session: only the first run pays for making it."""
    return tmp_path_factory.mktemp("prefect")
