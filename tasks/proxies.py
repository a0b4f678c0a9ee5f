"""The proxy of a run as a task."""

from __future__ import annotations

from prefect import get_run_logger, task

from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.proxies import ProxyManifest
from miniplm.run import proxies
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage
from tasks.progress import report_progress
from tasks.retries import TASK_OPTIONS
from tasks.scoring import release_model


@task(name="fit-proxy", task_run_name="fit the proxy of {corpus.corpus_id}", **TASK_OPTIONS)
def fit_proxy(storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry) -> ProxyManifest:
    """Fits the proxy of a run where it is not there yet, and says how well it predicts."""
    release_model()
    try:
        manifest = proxies.provide_proxy(storage, plan, corpus, reference, report_progress)
    finally:
        release_model()
    fidelity = proxies.measure_run_proxy(storage, manifest, plan)
    get_run_logger().info("proxy %s: %s", manifest.proxy_id, fidelity.describe())
    return manifest
