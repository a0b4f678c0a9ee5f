"""The rules that docker/compose.yaml keeps, by the file alone; `make test-containers` starts it."""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from tests.conftest import ROOT

TEXT = (ROOT / "docker" / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
OURS = {name: service for name, service in SERVICES.items() if "miniplm:" in service["image"]}
# ${NAME}, ${NAME:-default}, ${NAME:?what to do}
VARIABLES = re.compile(r"\$\{([A-Z0-9_]+)(?::([-?]))?")


def find_variables(text: str) -> dict[str, set[str]]:
    """How each variable is asked for: "-" with a default, "?" or it is refused, "" neither."""
    found: dict[str, set[str]] = {}
    for name, how in VARIABLES.findall(text):
        found.setdefault(name, set()).add(how)
    return found


def test_a_published_port_is_bound_by_the_one_address_setting_to_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 2
    assert all(isinstance(port, str) and port.startswith("${MINIPLM_LISTEN:-127.0.0.1}:") for port in published), published
    assert [name for name, service in SERVICES.items() if "network_mode" in service] == []


def test_each_service_of_our_images_is_without_privilege() -> None:
    assert set(OURS) == set(SERVICES) - {"postgres", "s3"}
    for name, service in OURS.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    given = {"privileged", "cap_add", "user", "pid", "ipc", "devices"}
    assert {name: found for name, service in SERVICES.items() if (found := given & set(service))} == {}


def test_a_secret_has_no_default_and_is_in_no_command() -> None:
    variables = find_variables(TEXT)
    secret = {name for name in variables if re.search("AUTH|PASSWORD|KEY$", name)}
    assert secret == {"MINIPLM_API_AUTH", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
    assert {how for name in secret for how in variables[name]} == {"?"}
    assert {name for name, how in variables.items() if "?" in how} == secret
    # A process list and `docker inspect` show commands and labels.
    shown = [str(service.get(part)) for service in SERVICES.values() for part in ("command", "labels", "healthcheck", "build")]
    assert secret & set(find_variables(" ".join(shown))) == set()


def test_each_variable_of_the_file_is_in_the_example_and_in_the_docs() -> None:
    variables = {*find_variables(TEXT), "COMPOSE_PROFILES"}
    example = (ROOT / "docker" / ".env.example").read_text()
    assert variables == set(re.findall(r"^([A-Z0-9_]+)=$", example, re.MULTILINE))
    said = set(re.findall(r"`([A-Z0-9_]+)`", (ROOT / "docs" / "fleet.md").read_text()))
    assert variables - said == set()


def test_each_container_is_watched_and_started_again() -> None:
    by_image = {"cpu", "gpu"}  # docker/Dockerfile has a health check of the worker that these start
    for name, service in SERVICES.items():
        watched = "healthcheck" in service or service["image"].rstrip("}").rsplit(":", 1)[1] in by_image
        assert watched, name
        assert service["restart"] == ("on-failure:5" if name == "setup" else "unless-stopped"), name
        assert service["logging"]["options"]["max-size"], name
        for other, condition in service.get("depends_on", {}).items():
            assert condition["condition"] == ("service_completed_successfully" if other == "setup" else "service_healthy")


def test_each_script_that_a_container_starts_is_in_the_image_and_executable() -> None:
    scripts = {word for service in OURS.values() for word in service["command"] if re.fullmatch(r"(docker|deployments)/\S+", word)}
    assert scripts == {"docker/setup.sh", "deployments/gpu-workers.sh", "deployments/start_server.py"}
    for script in scripts - {"deployments/start_server.py"}:  # by python
        assert os.access(ROOT / script, os.X_OK), script


def test_a_profile_has_as_many_gpus_as_it_says_each_by_one_worker() -> None:
    for profile, count in (("gpu", 1), ("gpu-2", 2), ("gpu-4", 4), ("gpu-8", 8)):
        chosen = {name: service for name, service in SERVICES.items() if profile in service.get("profiles", ())}
        assert sorted(chosen) == [f"gpu-worker-{number}" for number in range(count)]
        for number, (_, service) in enumerate(sorted(chosen.items())):
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device == {"driver": "nvidia", "device_ids": [str(number)], "capabilities": ["gpu"]}
            assert f"${{MINIPLM_HOST:-compose}}-gpu{number}" in service["command"]
    assert {name for name, service in SERVICES.items() if "cpu" in service.get("profiles", ())} == {"cpu-scorer"}


def test_workers_of_a_fleet_are_set_alike_in_image_compose_and_deployments() -> None:
    image = dict(re.findall(r"(PREFECT_[A-Z_]+)=(\S+)", (ROOT / "docker" / "Dockerfile").read_text()))
    (job,) = [yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["definitions"]["job_variables"]["env"]]
    worker = SERVICES["cpu-worker"]["environment"]
    for name in ("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "PREFECT_WORKER_QUERY_SECONDS", "PREFECT_WORKER_HEARTBEAT_SECONDS"):
        assert {image[name], job.get(name, image[name]), worker[name]} == {image[name]}, name
