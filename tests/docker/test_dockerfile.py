"""The rules that docker/Dockerfile keeps, by the file alone; `make test-containers` builds it."""

from __future__ import annotations

import re
import shlex
import subprocess
from fnmatch import fnmatch

import yaml

from tests.conftest import ROOT

TEXT = (ROOT / "docker" / "Dockerfile").read_text()
# Each instruction in one line.
INSTRUCTIONS = [
    line for line in re.sub(r"\\\n\s*(#[^\n]*\n\s*)*", " ", TEXT).splitlines() if line and not line.startswith(("#", " "))
]
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def list_read() -> set[str]:
    """What the build takes from the checkout: sources of COPY, and of mounts that are from no stage."""
    paths = set()
    for line in INSTRUCTIONS:
        words = shlex.split(line)
        if words[0] == "COPY" and not any(word.startswith("--from=") for word in words):
            paths |= {word for word in words[1:-1] if not word.startswith("--")}
        for mount in (word for word in words if word.startswith("--mount=type=bind") and "from=" not in word):
            paths.add(dict(part.split("=", 1) for part in mount.removeprefix("--mount=").split(","))["source"])
    return paths


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path into the build: its last matching line says so."""
    sent = True
    for line in IGNORED:
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        names = parts if "**/" in line else ["/".join(parts[: number + 1]) for number in range(len(parts))]
        if any(fnmatch(name, pattern) for name in names):
            sent = line.startswith("!")
    return sent


def test_all_that_the_build_copies_is_in_the_checkout_and_is_sent() -> None:
    paths = list_read()
    assert {"pyproject.toml", "constraints.txt", "miniplm", "docker/setup.sh"} <= paths
    tracked = subprocess.run(["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in paths:
        assert (ROOT / path).exists(), path
        below = [name for name in tracked if name == path or name.startswith(f"{path}/")]
        assert below, f"{path} is not tracked"
        assert [name for name in below if not is_sent(name)] == []


def test_no_secret_data_or_history_is_sent_to_the_build() -> None:
    for path in (
        ".git/config",
        "docker/.env",
        "deployments/.env.local",
        ".fleet/secrets/server",
        "deployments/.fleet/secrets/server",
    ):
        assert not is_sent(path), path
    for path in (
        "data/shard.parquet",
        "models/x/model.safetensors",
        "samples/a.jsonl",
        ".venv/bin/python",
        "miniplm/__pycache__/x.pyc",
    ):
        assert not is_sent(path), path


def test_nothing_is_pulled_before_the_base_image_is() -> None:
    assert not re.match(r"#\s*(syntax|check)\s*=", TEXT), "a frontend image would be pulled for each build"
    known = {"${PYTHON}"}
    for line in INSTRUCTIONS:
        if found := re.match(r"FROM (\S+) AS (\S+)", line):
            assert found[1] in known, line
            known.add(found[2])


def test_an_image_ends_as_a_numbered_user_with_files_that_it_may_read() -> None:
    stages = re.split(r"^FROM ", "\n".join(INSTRUCTIONS), flags=re.MULTILINE)[1:]
    final = {match[1]: stage for stage in stages if (match := re.match(r"\S+ AS (cpu|gpu)\n", stage))}
    assert set(final) == {"cpu", "gpu"}
    for name, stage in final.items():
        assert re.findall(r"^USER (.*)", stage, re.MULTILINE) == ["10001:10001"], name
        copies = re.findall(r"^COPY (.*)", stage, re.MULTILINE)
        assert copies, name
        assert [copy for copy in copies if not copy.startswith("--chmod=755 ")] == [], name


def test_what_compose_builds_are_stages_and_arguments_of_the_file() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    builds = [service["build"] for service in compose["services"].values() if "build" in service]
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", TEXT, re.MULTILINE))
    arguments = set(re.findall(r"^ARG ([A-Z_]+)", TEXT, re.MULTILINE))
    assert {build["target"] for build in builds} == {"cpu", "gpu"} <= stages
    defaults = dict(re.findall(r"^ARG ([A-Z_]+)=(\S+)", TEXT, re.MULTILINE))
    for build in builds:
        assert (ROOT / "docker" / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        # One default, said twice: a build by hand and one by Compose are the same.
        assert {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in build["args"].items()} == defaults
    assert arguments == set(defaults)


def test_pytorch_s_own_layer_names_what_the_constraints_have() -> None:
    """A name that the constraints lack would be left to another layer without a word."""
    (names,) = re.findall(r"grep -iE '\^\(([^)]*)\)==' constraints.txt", TEXT)
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert set(names.lower().split("|")) - pinned == set()
