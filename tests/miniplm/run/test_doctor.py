"""The doctor on this machine, on storage roots that cannot be used, and on packages that are not as wanted."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import fsspec.config
import pytest
import torch

from miniplm.models import devices
from miniplm.run.doctor import Finding, _read_cgroup_limit, check_requirements, diagnose
from miniplm.storage.root import Storage


def find(findings: list[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def test_this_machine_is_described(tmp_path: Path) -> None:
    findings = diagnose(str(tmp_path))
    assert find(findings, "torch").value == version("torch")
    assert f"{torch.get_num_threads()} threads" in find(findings, "cpu").value
    assert find(findings, "python").state == "ok"
    assert find(findings, "storage").state == "ok"
    assert "GiB free" in find(findings, "free disk").value
    assert all(finding.advice for finding in findings if finding.state != "ok")
    json.dumps([finding.as_json() for finding in findings])


@pytest.mark.parametrize(
    ("native", "told"),
    [
        (
            True,
            "multiplies in bfloat16 and float32; dtype auto trains in float32 and scores in bfloat16 from hidden width 512, else in float32",
        ),
        (False, "multiplies in float32; dtype auto trains in float32 and scores in float32"),
    ],
)
def test_what_the_cpu_multiplies_in_and_what_auto_makes_of_it_are_told(
    monkeypatch: pytest.MonkeyPatch, native: bool, told: str
) -> None:
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda: native)
    assert find(diagnose(None), "cpu").value.endswith(told)


def test_storage_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    diagnose(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    diagnose(str(tmp_path / "new" / "root"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_no_storage_given_looks_at_none() -> None:
    assert not {"storage", "free disk"} & {finding.name for finding in diagnose(None)}


def test_other_file_systems_are_probed_too() -> None:
    assert find(diagnose("memory://doctor/root"), "storage").state == "ok"
    assert not [path for path in fsspec.filesystem("memory").store if "doctor-" in path]


def test_a_bucket_is_probed_and_its_distance_told(s3_server, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"endpoint_url": s3_server.endpoint, "key": s3_server.key, "secret": s3_server.secret}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    finding = find(diagnose(f"s3://{s3_server.bucket}/doctor"), "storage")
    assert finding.state == "ok"
    assert re.search(r"deleted a file; a small read takes \d+ ms$", finding.value)
    assert Storage(f"s3://{s3_server.bucket}/doctor").list_names("") == []
    finding = find(diagnose("s3://nobucket/doctor"), "storage")
    assert finding.state == "problem"
    assert "the bucket nobucket does not exist" in finding.value


def test_root_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = find(diagnose(str(tmp_path / "file" / "root")), "storage")
    assert finding.state == "problem"
    assert "cannot write" in finding.value
    assert "may write to" in finding.value
    assert finding.advice == "see the error"


def test_unknown_protocol_is_a_problem() -> None:
    finding = find(diagnose("nosuch://bucket/root"), "storage")
    assert finding.state == "problem"
    assert "nosuch" in finding.value


def test_storage_that_changes_content_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Storage, "read_bytes", lambda storage, relative: b"other")
    finding = find(diagnose(str(tmp_path)), "storage")
    assert (finding.state, finding.value) == ("problem", f"{tmp_path}: the file came back changed")
    assert list(tmp_path.iterdir()) == []


def test_packages_are_held_against_their_ranges() -> None:
    needed = [
        "numpy>=1",
        "numpy<1",
        "no-such-package-for-miniplm>=2; python_version >= '3'",
        "never-asked-for; extra == 'gpu'",
        "never-asked-for; python_version < '3'",
    ]
    good, old, missing = check_requirements(needed)
    assert (good.state, good.value) == ("ok", version("numpy"))
    assert old.state == "warning"
    assert old.value == f"{version('numpy')}, outside the known good <1"
    assert old.advice == "pip install 'numpy<1'"
    assert (missing.name, missing.state, missing.value) == ("no-such-package-for-miniplm", "problem", "missing")


def test_container_limit_counts_as_memory(tmp_path: Path) -> None:
    assert _read_cgroup_limit(tmp_path) is None
    (tmp_path / "memory.current").write_text("100\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert _read_cgroup_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("4096\n")
    assert _read_cgroup_limit(tmp_path) == (100, 4096)


def test_broken_check_is_a_finding_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise RuntimeError("driver too old\nmore")

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", fail)
    finding = find(diagnose(None), "devices")
    assert (finding.state, finding.value) == ("problem", "RuntimeError: driver too old")
