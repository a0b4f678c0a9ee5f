"""A GPU trains with deterministic kernels; a model that has none for an operation trains too, and it is said."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from miniplm.training.numerics import run_deterministically, training_numerics

MESSAGE = "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'"


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def test_a_gpu_trains_strictly_and_without_tf32_and_the_settings_are_put_back() -> None:
    precision = torch.get_float32_matmul_precision()
    with training_numerics(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.get_float32_matmul_precision() == precision == "highest"
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_kernel_is_said_once_and_run(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def step() -> int:
        calls.append(torch.is_deterministic_algorithms_warn_only_enabled())
        if not calls[-1]:
            raise RuntimeError(MESSAGE)
        return 7

    with caplog.at_level(logging.WARNING, "miniplm"), training_numerics(torch.device("cuda")):
        assert [run_deterministically(step, "MambaModel") for _ in range(3)] == [7, 7, 7]
    assert calls == [False, True, True, True]
    assert len(caplog.records) == 1
    assert "MambaModel has an operation without a deterministic kernel (cumsum_cuda_kernel" in caplog.records[0].message


def test_other_errors_are_raised_as_they_are() -> None:
    def step() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with training_numerics(torch.device("cuda")), pytest.raises(RuntimeError, match="illegal memory access"):
        run_deterministically(step, "MambaModel")
