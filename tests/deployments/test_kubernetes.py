"""The base job template of the Kubernetes GPU pool: whole in itself, filled in as a worker does, and taken by a real server."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.workers.base import BaseJobConfiguration
from pydantic import Field

import miniplm
from tests.command_line import environment
from tests.conftest import ROOT

PATH = ROOT / "deployments" / "kubernetes" / "gpu-base-job-template.json"
TEMPLATE = json.loads(PATH.read_text())
PROPERTIES = TEMPLATE["variables"]["properties"]


class JobConfiguration(BaseJobConfiguration):
    """What prefect-kubernetes' own has of fields; the filling in is Prefect's."""

    namespace: str = "default"
    job_manifest: dict = Field(default_factory=dict)
    cluster_config: dict | None = None
    job_watch_timeout_seconds: int | None = None
    pod_watch_timeout_seconds: int = 60
    stream_output: bool = True


def fill_in(**variables) -> JobConfiguration:
    # A client that is never asked, since the template refers to no block; without one Prefect starts a server.
    client = PrefectClient("http://127.0.0.1:9/api")
    return asyncio.run(JobConfiguration.from_template_and_values(TEMPLATE, variables, client=client))


def test_the_variables_are_a_json_schema_and_their_defaults_obey_it():
    jsonschema.Draft202012Validator.check_schema(TEMPLATE["variables"])
    for name, schema in PROPERTIES.items():
        assert schema["description"], name
        if "default" in schema:
            jsonschema.validate(schema["default"], {**schema, "definitions": TEMPLATE["variables"]["definitions"]})


def test_every_placeholder_is_a_variable_and_every_variable_is_placed():
    placed = set(re.findall(r"\{\{\s*([\w.]+)\s*\}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert placed == set(PROPERTIES)


def test_a_job_asks_for_one_gpu_as_somebody_without_privilege():
    manifest = fill_in(name="score").job_manifest
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"] == f"miniplm:{miniplm.__version__}-gpu"
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["securityContext"]["runAsNonRoot"]
    assert f"USER {pod['securityContext']['runAsUser']}:" in (ROOT / "docker" / "Dockerfile").read_text()
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod["automountServiceAccountToken"] is False
    assert "{{" not in json.dumps(manifest)


def test_kubernetes_leaves_trying_again_to_prefect_and_clears_up():
    """With a backoffLimit above 0 Kubernetes would start the run beside the one that the parent starts again."""
    job = fill_in().job_manifest["spec"]
    assert (job["backoffLimit"], job["parallelism"], job["completions"]) == (0, 1, 1)
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["ttlSecondsAfterFinished"] == 3600
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 120
    assert "activeDeadlineSeconds" not in job
    assert fill_in(active_deadline_seconds=5).job_manifest["spec"]["activeDeadlineSeconds"] == 5


def test_what_the_worker_of_prefect_kubernetes_looks_for_is_there():
    """It refuses a template without these two in the pod, where Kubernetes does not know them and drops them."""
    pod = fill_in().job_manifest["spec"]["template"]["spec"]
    assert (pod["parallelism"], pod["completions"], pod["containers"][0]["name"]) == (1, 1, "prefect-job")


def test_secrets_are_named_and_never_written():
    (container,) = fill_in().job_manifest["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "miniplm-s3"}}, {"secretRef": {"name": "miniplm-prefect-api"}}]
    assert not [name for name in container["env"] if re.search("AUTH|SECRET|KEY|TOKEN", name)]


def test_pytorch_has_shared_memory_and_models_stay_in_a_volume():
    pod = fill_in(shared_memory="2Gi", cache_claim="models").job_manifest["spec"]["template"]["spec"]
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]] == {"emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}
    assert volumes[mounts["/cache/huggingface"]] == {"persistentVolumeClaim": {"claimName": "models"}}
    assert pod["containers"][0]["env"]["HF_HOME"] == "/cache/huggingface"


def test_runs_beat_often_enough_and_a_deployment_adds_to_the_environment():
    configuration = fill_in(env={"OMP_NUM_THREADS": "4"})
    assert configuration.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert configuration.env["OMP_NUM_THREADS"] == "4"


@pytest.fixture(scope="module")
def client(prefect_server):
    with SyncPrefectClient(prefect_server["PREFECT_API_URL"]) as client:
        yield client


def test_a_real_server_takes_it_and_holds_a_deployment_to_its_variables(prefect_server, client):
    prefect = str(Path(sys.executable).parent / "prefect")
    name = "miniplm-gpu-kubernetes"
    command = [prefect, "--no-prompt", "work-pool", "create", name, "--type", "kubernetes", "--base-job-template", str(PATH)]
    done = subprocess.run(
        command, env=environment(prefect_server), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.read_work_pool(name).base_job_template == TEMPLATE
    flow_id = client.create_flow_from_name("kubernetes-template-test")

    def deploy(**job_variables):
        client.create_deployment(flow_id=flow_id, name="test", work_pool_name=name, job_variables=job_variables)

    deploy(node_selector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, gpu_count=1)
    with pytest.raises(Exception, match="gpu_count"):
        deploy(gpu_count="two")
    client.delete_work_pool(name)
