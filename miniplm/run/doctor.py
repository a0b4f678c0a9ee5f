"""Looks at the machine: versions, devices, memory and storage, and says what to do about what is wrong."""

from __future__ import annotations

import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement

from miniplm.errors import StorageError
from miniplm.models.dtypes import LEAST_WIDTH_OF_BFLOAT16
from miniplm.records.manifests import Record
from miniplm.storage.root import Storage

State = Literal["ok", "warning", "problem"]

_GIB = 2**30
# The demo needs under 4 GiB; a run below it may die when the teacher is loaded.
_MEMORY_WANTED_BYTES = 4 * _GIB
_DISK_WANTED_BYTES = 5 * _GIB


class Finding(Record):
    """One thing that was looked at: what it is (`value`), and what to do where that is not as wanted (`advice`)."""

    name: str
    state: State
    value: str
    advice: str = ""


def diagnose(storage_url: str | None = None) -> list[Finding]:
    """Everything that this machine should have, and the storage root where one is given. Raises nothing.

    A `problem` keeps a run from working, a `warning` may; the storage root is as it was when this returns.
    """
    findings: list[Finding] = []
    for check in (_check_python, _check_packages, _check_devices, _check_memory):
        findings += _run_check(check.__name__.removeprefix("_check_"), check)
    if storage_url is not None:
        findings += _run_check("storage", lambda: _check_storage(storage_url))
        findings += _run_check("free disk", lambda: _check_disk(storage_url))
    return findings


def _run_check(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """A check's findings; where it breaks, that is the finding: a doctor tells what is wrong instead of failing of it."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except Exception as error:
        message = str(error).strip().splitlines() or [""]
        findings.append(Finding(name=name, state="problem", value=f"{type(error).__name__}: {message[0]}", advice="see the error"))
    return findings


def _check_python() -> Iterator[Finding]:
    wanted = sys.version_info >= (3, 11)
    yield Finding(
        name="python",
        state="ok" if wanted else "problem",
        value=f"{platform.python_version()} ({sys.executable})",
        advice="" if wanted else "install Python 3.11 or newer and set up again",
    )


def _check_packages() -> Iterator[Finding]:
    try:
        needed = requires("miniplm") or []
    except PackageNotFoundError:
        yield Finding(
            name="miniplm", state="warning", value="not installed as a package", advice="run `make setup`, or pip install it"
        )
        return
    yield Finding(name="miniplm", state="ok", value=version("miniplm"))
    yield from check_requirements(needed)


def check_requirements(needed: list[str]) -> Iterator[Finding]:
    """Whether installed packages lie in the ranges that this package declares; those of extras are left out."""
    for text in needed:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(name=requirement.name, state="problem", value="missing", advice=f"pip install '{wanted}'")
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            yield Finding(name=requirement.name, state="ok", value=installed)
        else:
            yield Finding(
                name=requirement.name,
                state="warning",
                value=f"{installed}, outside the known good {requirement.specifier}",
                advice=f"pip install '{wanted}'",
            )


def _check_devices() -> Iterator[Finding]:
    import torch

    from miniplm.models.devices import has_native_bfloat16

    multiplies = "bfloat16 and float32" if has_native_bfloat16() else "float32"
    scores = f"bfloat16 from hidden width {LEAST_WIDTH_OF_BFLOAT16}, else in float32" if has_native_bfloat16() else "float32"
    yield Finding(
        name="cpu",
        state="ok",
        value=f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, multiplies in {multiplies}; "
        f"dtype auto trains in float32 and scores in {scores}",
    )
    if not torch.cuda.is_available():
        yield Finding(name="cuda", state="ok", value="no CUDA device; models run on the CPU")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Finding(
            name=f"cuda:{index}",
            state="ok" if bfloat16 else "warning",
            value=f"{torch.cuda.get_device_name(index)}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, "
            f"bfloat16 {'yes' if bfloat16 else 'no'}",
            advice="" if bfloat16 else "set the models' and the training's dtype to float16 or float32; `auto` picks bfloat16",
        )


def _check_memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    available, total = memory.available, memory.total
    limit = _read_cgroup_limit(Path("/sys/fs/cgroup"))
    if limit is not None and limit[1] < total:
        available, total = min(available, limit[1] - limit[0]), limit[1]
    enough = available >= _MEMORY_WANTED_BYTES
    yield Finding(
        name="memory",
        state="ok" if enough else "warning",
        value=f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB available",
        advice=""
        if enough
        else "the demo needs 4 GiB; close something, or set scoring.tokens_per_batch and micro_batch_size lower",
    )


def _read_cgroup_limit(folder: Path) -> tuple[int, int] | None:
    """Bytes used and allowed in this container (cgroup v2); None where there is no limit."""
    limit, used = folder / "memory.max", folder / "memory.current"
    if not limit.exists() or not used.exists():
        return None
    text = limit.read_text().strip()
    return None if text == "max" else (int(used.read_text()), int(text))


def _check_storage(storage_url: str) -> Iterator[Finding]:
    storage = Storage(storage_url)
    missing = _missing_folders(storage)
    probe = f"doctor-{uuid.uuid4().hex}.txt"
    content = uuid.uuid4().bytes
    try:
        storage.write_bytes(probe, content)
        start = time.perf_counter()
        intact = storage.read_bytes(probe) == content
        milliseconds = (time.perf_counter() - start) * 1000
        storage.delete(probe)
    except Exception as error:
        # An error of ours says what to do itself.
        is_ours = isinstance(error, StorageError)
        reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
        yield Finding(
            name="storage",
            state="problem",
            value=f"{storage_url}: {reason}",
            advice="see the error"
            if is_ours
            else "give the config a `storage` that this user may write to; for S3 check the URL, the credentials and the endpoint",
        )
        return
    finally:
        for folder in missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    deleted = not storage.exists(probe)
    yield Finding(
        name="storage",
        state="ok" if intact and deleted else "problem",
        value=f"{storage_url}: "
        + (
            "written, read back and deleted a file" + ("" if storage.is_local else f"; a small read takes {milliseconds:.0f} ms")
            if intact and deleted
            else "the file came back changed"
            if not intact
            else "the file cannot be deleted"
        ),
        advice="" if intact and deleted else "use another storage root; this one does not keep what is written to it",
    )


def _missing_folders(storage: Storage) -> list[Path]:
    """Folders down to a local root that do not exist yet, the deepest first, so that probing leaves none behind."""
    if not storage.is_local:
        return []
    root = Path(storage.root_path)
    return [folder for folder in (root, *root.parents) if not folder.exists()]


def _check_disk(storage_url: str) -> Iterator[Finding]:
    storage = Storage(storage_url)
    if not storage.is_local:
        return
    root = Path(storage.root_path)
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    usage: Any = shutil.disk_usage(existing)
    enough = usage.free >= _DISK_WANTED_BYTES
    yield Finding(
        name="free disk",
        state="ok" if enough else "warning",
        value=f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free at {existing}",
        advice="" if enough else "free some space, or choose another `storage`; `miniplm plan` says what a run needs",
    )
