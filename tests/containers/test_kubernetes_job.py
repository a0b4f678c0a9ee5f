"""The Kubernetes job template, rendered by prefect-kubernetes' own worker and held against the types of Kubernetes' API.

Here and not beside tests/deployments/test_kubernetes.py, since where prefect-kubernetes is installed every Prefect process imports it.
scripts/test_containers.sh has it in a folder of its own. No cluster is asked: what an admission controller or a scheduler says is unproven.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests.conftest import ROOT

pytest.importorskip("prefect_kubernetes", reason="scripts/test_containers.sh fetches it")
from kubernetes_asyncio.client import ApiClient, Configuration
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

PATH = ROOT / "deployments" / "kubernetes" / "gpu-base-job-template.json"
TEMPLATE = json.loads(PATH.read_text())
URL = "http://fleet:4200/api"


def fill_in(**variables: Any) -> KubernetesWorkerJobConfiguration:
    # A client that is never asked, since the template refers to no block; without one Prefect starts a server.
    client = PrefectClient("http://127.0.0.1:9/api")
    return asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(TEMPLATE, variables, client=client))


def prepare(name: str, **variables: Any) -> KubernetesWorkerJobConfiguration:
    """What a worker makes of the template for a flow run of the deployment score-shards, as deployments/prefect.yaml has it."""
    deployed = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    (shipped,) = [one["work_pool"]["job_variables"] for one in deployed if one["name"] == "score-shards"]
    flow = Flow(id=uuid4(), name="score-shards")
    run = FlowRun(id=uuid4(), name=name, flow_id=flow.id, deployment_id=uuid4(), tags=["miniplm", "model:a/b c"])
    # A worker gives its own variables first.
    given = {**shipped, **variables, "env": {"PREFECT_API_URL": URL, **shipped["env"], **variables.get("env", {})}}
    with temporary_settings({PREFECT_API_URL: URL, PREFECT_API_AUTH_STRING: "miniplm:password"}):
        configuration = fill_in(**given)
        configuration.prepare_for_flow_run(run, flow=flow, worker_name="a worker")
    return configuration


@pytest.fixture
def kubernetes() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of what stands for Kubernetes' API, and the jobs that it was asked to make."""
    jobs: list[dict[str, Any]] = []

    class Api(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/apis/batch/v1/namespaces/miniplm/jobs"
            jobs.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(201)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(jobs[-1]).encode())

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", jobs
        server.shutdown()


class _Answer:
    def __init__(self, content: Any) -> None:
        self.data = json.dumps(content)


async def read_as_kubernetes(manifest: dict[str, Any]) -> dict[str, Any]:
    """A job by the types of Kubernetes' API: what they do not know is gone, a value of another type or one that is missing is an error."""
    async with ApiClient(Configuration()) as client:
        return dict(client.sanitize_for_serialization(client.deserialize(_Answer(manifest), "V1Job")))


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {
            "cpu_limit": "8",
            "active_deadline_seconds": 60,
            "image_pull_secrets": [{"name": "registry"}],
            "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
            "labels": {"team": "us"},
            "env": {"OMP_NUM_THREADS": "4"},
        },
    ],
)
def test_the_worker_asks_for_a_job_that_kubernetes_knows_and_writes_no_password(
    variables: dict[str, Any], kubernetes: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/fleet.md has the worker started, with its two variables."""
    address, jobs = kubernetes
    for name, value in (("NAME", "miniplm-prefect-api"), ("KEY", "PREFECT_API_AUTH_STRING")):
        monkeypatch.setenv(f"PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_{name}", value)

    async def create() -> None:
        async with ApiClient(Configuration(host=address)) as client:
            await KubernetesWorker(work_pool_name="miniplm-gpu")._create_job(configuration, client)

    configuration = prepare("score teacher c-1 shard-00016 to 00031", **variables)
    assert configuration.env["PREFECT_API_AUTH_STRING"] == "miniplm:password"
    asyncio.run(create())
    (job,) = jobs
    assert "password" not in json.dumps(job)
    pod = job["spec"]["template"]["spec"]
    known = asyncio.run(read_as_kubernetes(job))
    # Which the worker insists on and Kubernetes leaves out.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    (container,) = pod["containers"]
    limits = container["resources"]["limits"]
    limits["nvidia.com/gpu"] = str(limits["nvidia.com/gpu"])  # a quantity is text or a number
    assert known == job
    env = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
    assert env["PREFECT_API_AUTH_STRING"] == {"secretKeyRef": {"name": "miniplm-prefect-api", "key": "PREFECT_API_AUTH_STRING"}}
    assert env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert (env["PREFECT_API_URL"], env["HF_HOME"]) == (URL, "/cache/huggingface")
    assert container["args"] == ["python", "-m", "prefect.engine"]
    assert job["metadata"]["generateName"] == "score-teacher-c-1-shard-00016-to-00031-"


def test_a_job_that_kubernetes_does_not_know_would_be_noticed() -> None:
    """Of the check above: a misspelt field and one of another type are not passed over."""
    manifest = prepare("score").job_manifest
    pod = manifest["spec"]["template"]["spec"]
    pod["serviceAcountName"] = "misspelt"
    assert "serviceAcountName" not in asyncio.run(read_as_kubernetes(manifest))["spec"]["template"]["spec"]
    manifest["spec"]["backoffLimit"] = "none"
    with pytest.raises(ValueError, match="none"):
        asyncio.run(read_as_kubernetes(manifest))
