"""Devices that are full, gone or too small."""

import pytest
import torch

from miniplm.errors import DeviceError, ModelError
from miniplm.models import devices
from miniplm.models.devices import device_errors, is_device_lost, is_out_of_memory
from miniplm.models.loading import spread_weights

GIB = 1 << 30


@pytest.mark.parametrize(
    ("message", "is_lost", "is_full"),
    [
        ("CUDA error: unspecified launch failure", True, False),
        ("Triton Error [CUDA]: an illegal memory access was encountered", True, False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False, True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False, True),
        ("CUDA error: no kernel image is available for execution on the device", False, False),
        ("expected m1 and m2 to have the same dtype", False, False),
    ],
)
def test_errors_are_told_apart(message, is_lost, is_full):
    assert is_device_lost(RuntimeError(message)) is is_lost
    assert is_out_of_memory(RuntimeError(message)) is is_full


def test_a_lost_gpu_is_not_used_again(monkeypatch):
    monkeypatch.setattr(devices, "_lost", set())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="cuda failed during scoring"), device_errors(torch.device("cuda"), "scoring"):
        raise RuntimeError("CUDA error: unspecified launch failure")
    assert devices.resolve_device("auto") == torch.device("cuda", 1)
    with pytest.raises(devices.NoDeviceError, match="cuda:0 stopped answering"):
        devices.resolve_device("cuda:0")
    devices.mark_lost(torch.device("cuda", 1))
    with pytest.raises(devices.NoDeviceError, match="no GPU of this machine answers any more"):
        devices.resolve_device("auto")


def test_other_errors_pass_through():
    with pytest.raises(ZeroDivisionError), device_errors(torch.device("cpu"), "scoring"):
        raise ZeroDivisionError


def test_weights_are_spread_over_as_few_gpus_as_hold_them():
    free = dict.fromkeys(range(4), 70 * GIB)
    assert spread_weights(60 * GIB, free) is None
    assert spread_weights(120 * GIB, free) == {0: 70 * GIB, 1: 70 * GIB}
    assert spread_weights(140 * GIB, free) == {0: 70 * GIB, 1: 70 * GIB, 2: 70 * GIB}
    with pytest.raises(ModelError, match=r"300\.0 GiB of weights, and the 4 GPUs of this machine have 280\.0 GiB"):
        spread_weights(300 * GIB, free)
