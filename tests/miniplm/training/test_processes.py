"""How many processes train: one a GPU, as many as are asked for, or a refusal that says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from miniplm.config.run import TrainingConfig
from miniplm.errors import ConfigError
from miniplm.training.processes.count import count_processes, find_inline_reason


@pytest.mark.parametrize(
    ("launcher", "root", "reason"),
    [
        ("process", "s3://bucket/data", None),
        ("process", "memory://data", "`storage` is memory://data, in the memory of the run"),
        ("inline", "/data", "execution.launcher is inline"),
    ],
)
def test_a_root_that_no_other_process_sees_is_trained_in_line(launcher: str, root: str, reason: str | None) -> None:
    assert find_inline_reason(launcher, root) == reason
    training = TrainingConfig(steps=1, batch_size=16, processes=2)
    if reason is None:
        assert count_processes(training, torch.device("cpu"), reason) == 2
    else:
        with pytest.raises(ConfigError, match=reason):
            count_processes(training, torch.device("cpu"), reason)


@pytest.mark.parametrize(
    ("processes", "device", "num_gpus", "batch_size", "wanted"),
    [
        ("auto", "cpu", 0, 8, 1),
        (2, "cpu", 0, 16, 2),
        ("auto", "cuda", 1, 8, 1),
        ("auto", "cuda", 4, 64, 4),
        ("auto", "cuda", 8, 40, 5),
        ("auto", "cuda:1", 4, 64, 1),
        (2, "cuda", 4, 64, 2),
        ("auto", "mps", 0, 64, 1),
    ],
)
def test_there_is_a_process_a_gpu(
    processes: Any, device: str, num_gpus: int, batch_size: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    training = TrainingConfig(steps=1, batch_size=batch_size, processes=processes)
    assert count_processes(training, torch.device(device)) == wanted


@pytest.mark.parametrize(
    ("processes", "device", "message"),
    [
        (3, "cuda", r"training.processes is 3, but there are 2 GPUs for it \(scoring.device: cuda\)"),
        (2, "cuda:1", r"training.processes is 2, but there is 1 GPU for it \(scoring.device: cuda:1\)"),
        (2, "mps", r"training.processes is 2, but on a device of type mps only one can train"),
        (3, "cpu", r"batch of 16 sequences is 2 micro-batches of 8.*training.micro_batch_size of at most 5"),
    ],
)
def test_more_processes_than_there_can_be_are_refused(
    processes: int, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=message):
        count_processes(TrainingConfig(steps=1, batch_size=16, processes=processes), torch.device(device))
