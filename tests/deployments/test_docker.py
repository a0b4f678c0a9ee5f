"""The Dockerfile and compose.yaml, read as Docker would: what must not be in them, and what each needs from elsewhere.

There is no Docker engine where the tests run, so nothing is built here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE = ROOT / "docker" / "compose.yaml"
EXAMPLE = ROOT / "docker" / ".env.example"
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
OURS = ("server", "setup", "cpu-worker", "gpu-worker-")


TEXT = re.sub(r"^ *#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
STAGES = {stage.partition("\n")[0].split()[-1]: stage for stage in TEXT.split("\nFROM ")[1:]}
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_an_image_runs_as_somebody_without_privilege_after_the_last_thing_is_installed(stage):
    assert "useradd --uid 10001 " in STAGES["base"]
    assert STAGES[stage].startswith("base AS ")
    assert re.findall("^USER (.+)$", TEXT, flags=re.MULTILINE) == ["10001:10001"] * 2
    assert STAGES[stage].index("USER 10001:10001") > STAGES[stage].rindex("install")


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_signals_reach_the_worker(stage):
    """The exec form, behind an init; the script passes SIGTERM on, as its own test shows."""
    (command,) = re.findall("^CMD (.+)$", STAGES[stage], flags=re.MULTILINE)
    assert command.startswith('["deployments/gpu-workers.sh"')
    assert f'"--pool", "miniplm-{stage}"' in command
    assert "--healthcheck" in command
    for setting in (
        'ENTRYPOINT ["tini", "-s", "--"]',
        "127.0.0.1:8080/health",
        "PYTHONUNBUFFERED=1",
        "PREFECT_HOME=/home/miniplm/.prefect",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30",
        "PREFECT_WORKER_WEBSERVER_PORT=8080",
        "PREFECT_LOGGING_EXTRA_LOGGERS=miniplm",
        "DO_NOT_TRACK=1",
    ):
        assert setting in STAGES["base"]
    assert not re.search("^(ENTRYPOINT|HEALTHCHECK)", STAGES[stage], flags=re.MULTILINE)


def test_base_images_have_an_exact_version():
    assert re.findall("^ARG (.+)$", TEXT, flags=re.MULTILINE) == re.findall(
        r"^ARG (PYTHON=python:3\.\d+\.\d+-slim-[a-z]+)$", TEXT, flags=re.MULTILINE
    )
    assert {stage.split()[0] for stage in STAGES.values()} <= {"${PYTHON}", *STAGES}


def test_no_secret_is_in_a_layer():
    assert not [text for text in re.findall(r"^(?:ENV|ARG) (?:.*\\\n)*.*$", TEXT, flags=re.MULTILINE) if SECRET.search(text)]
    first, *rules = (ROOT / ".dockerignore").read_text().split("\n", 1)[1].split()
    assert first == "*"
    kept = [rule for rule in rules if rule.startswith("!")]
    assert rules[: len(kept)] == kept, "the last rule that matches decides"
    assert {"**/.env", "**/.env.*", "**/.fleet"} <= set(rules)
    assert (ROOT / "docker" / ".gitignore").read_text().split() == [".env"]


def test_what_is_copied_is_there_and_in_the_build():
    copied = [line.split() for line in re.findall("^COPY (.+)$", TEXT, flags=re.MULTILINE)]
    sources = {source for words in copied if not words[0].startswith("--from=") for source in words[:-1]}
    assert {"pyproject.toml", "constraints.txt", "miniplm", "tasks", "flows", "deployments", "docker/setup.sh"} <= sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {f"!{source}" for source in sources} <= set((ROOT / ".dockerignore").read_text().split())
    assert {words[0].removeprefix("--from=") for words in copied if words[0].startswith("--from=")} <= set(STAGES)


def test_every_install_is_under_the_constraints_and_the_cpu_image_takes_the_cpu_build():
    installs = re.findall("pip install (.+)$", TEXT, flags=re.MULTILINE)
    assert len(installs) == 6
    for install in installs:
        assert "--constraint /src/constraints.txt" in install or "--no-deps /wheels/*.whl" in install
    assert "download.pytorch.org/whl/cpu" in STAGES["cpu-torch"]
    assert TEXT.count("download.pytorch.org") == 1
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"torch", "prefect", "fastapi"} <= pinned


def test_server_and_workers_are_the_same_build_and_so_the_same_prefect():
    """No image of Prefect's own, which could be another version than constraints.txt has."""
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images.pop("postgres") == "postgres:17.6-bookworm"
    assert images.pop("s3") == "chrislusf/seaweedfs:4.48"
    assert set(images.values()) == {"${MINIPLM_CPU_IMAGE:-miniplm:cpu}", "${MINIPLM_GPU_IMAGE:-miniplm:gpu}"}
    assert all(images[name].endswith("gpu}") == name.startswith("gpu") for name in images)
    assert "latest" not in COMPOSE.read_text()


def read_variables(text: str) -> dict[str, set[str]]:
    """Each ${NAME} of compose.yaml, with what follows it: ':?' must be given, ':-' has a default, '' neither."""
    found: dict[str, set[str]] = {}
    for name, rest in re.findall(r"\$\{([A-Z0-9_]+)([^}]*)\}", text):
        found.setdefault(name, set()).add(rest[:2])
    return found


def test_the_example_names_every_variable_and_gives_no_password():
    variables = read_variables(COMPOSE.read_text())
    example = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", EXAMPLE.read_text(), flags=re.MULTILINE))
    assert set(example) == set(variables)
    assert set(example.values()) == {""}
    required = {name for name, kinds in variables.items() if kinds == {":?"}}
    assert required == {"MINIPLM_API_AUTH", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
    assert {name for name in variables if SECRET.search(name)} - required == {"HF_TOKEN"}
    assert all(kinds in ({":?"}, {":-"}) for kinds in variables.values())


def test_no_secret_is_written_into_compose():
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                assert re.match(r"\$\{[A-Z0-9_]+:[?-]", value), f"{name}: {variable}"


def test_only_the_server_and_s3_are_published_and_on_this_machine_alone():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "server": ["${MINIPLM_LISTEN:-127.0.0.1}:${MINIPLM_PORT:-4200}:4200"],
        "s3": ["${MINIPLM_LISTEN:-127.0.0.1}:${S3_PORT:-8333}:8333"],
    }


def test_authentication_is_on_and_every_client_has_it():
    assert "PREFECT_SERVER_API_AUTH_STRING" in SERVICES["server"]["environment"]
    clients = [name for name in SERVICES if name.startswith(OURS)]
    assert len(clients) == 11
    for name in clients:
        assert SERVICES[name]["environment"]["PREFECT_API_AUTH_STRING"].startswith("${MINIPLM_API_AUTH:?")


def test_what_others_wait_for_says_whether_it_is_healthy():
    for name, service in SERVICES.items():
        for other, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "test" in SERVICES[other]["healthcheck"], f"{name} waits for {other}"
    assert {"postgres", "server", "s3"} <= {name for name, service in SERVICES.items() if "healthcheck" in service}
    assert SERVICES["setup"]["depends_on"]["server"] == {"condition": "service_healthy"}
    assert SERVICES["cpu-worker"]["depends_on"]["setup"] == {"condition": "service_completed_successfully"}


def test_everything_but_the_setup_comes_back_after_a_restart_with_what_it_stored():
    volumes = set(yaml.safe_load(COMPOSE.read_text())["volumes"])
    mounted = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert volumes == mounted - {"./postgres"}
    for name, service in SERVICES.items():
        assert service["restart"] == ("on-failure:5" if name == "setup" else "unless-stopped"), name
        assert name == "setup" or "stop_grace_period" in service
        if name.startswith(OURS):
            assert service["init"] is True
            assert service["cap_drop"] == ["ALL"]


def test_a_gpu_worker_has_one_gpu_and_a_profile_as_many_as_it_says():
    workers = {name: service for name, service in SERVICES.items() if name.startswith("gpu-worker-")}
    devices = [service["deploy"]["resources"]["reservations"]["devices"] for service in workers.values()]
    assert devices == [[{"driver": "nvidia", "device_ids": [str(number)], "capabilities": ["gpu"]}] for number in range(8)]
    pinned = {service["command"][service["command"].index("--gpus") + 1] for service in workers.values()}
    assert pinned == {"0"}, "the only GPU of a container is its number 0"
    started = {
        profile: sum(profile in service["profiles"] for service in workers.values())
        for profile in ("gpu", "gpu-2", "gpu-4", "gpu-8")
    }
    assert started == {"gpu": 1, "gpu-2": 2, "gpu-4": 4, "gpu-8": 8}


def test_pools_are_the_two_that_there_are_and_set_up_before_a_worker_asks():
    named = {
        service["command"][service["command"].index("--pool") + 1]
        for service in SERVICES.values()
        if "--pool" in service.get("command", [])
    }
    assert named == {"miniplm-cpu", "miniplm-gpu"}
    setup = (ROOT / "docker" / "setup.sh").read_text()
    assert 'for pool in ("miniplm-cpu", "miniplm-gpu"):' in setup
    for path in re.findall(r"deployments/\S+\.(?:yaml|py)", setup):
        assert (ROOT / path).is_file(), path


def test_a_worker_beats_often_enough_for_the_automation_that_listens():
    for name in ("cpu-worker", "gpu-worker-0", "gpu-worker-7"):
        environment = SERVICES[name]["environment"]
        assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert environment["AWS_ENDPOINT_URL"] == "${S3_ENDPOINT:-http://s3:8333}"
        assert SERVICES[name]["volumes"] == ["huggingface:/cache/huggingface"]


def test_postgres_makes_the_extension_that_prefect_searches_with():
    assert "./postgres:/docker-entrypoint-initdb.d:ro" in SERVICES["postgres"]["volumes"]
    scripts = [path.read_text() for path in Path(ROOT / "docker" / "postgres").glob("*.sql")]
    assert any("CREATE EXTENSION IF NOT EXISTS pg_trgm" in script for script in scripts)
