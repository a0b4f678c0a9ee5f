"""The scores of the labelled sequences become a proxy, which predicts the rest in the teacher's place."""

from __future__ import annotations

from prefect import flow

from flows.work_pool.single import run_on_pool
from miniplm import __version__
from miniplm.corpus.reader import open_corpus
from miniplm.records.manifests import ModelEntry
from miniplm.records.proxies import ProxyManifest
from miniplm.run.plan import RunPlan
from miniplm.run.proxies import find_run_proxy, require_run_proxy
from tasks import proxies, workers


@flow(name="fit-proxy", flow_run_name="fit proxy of {corpus_id}")
def fit_proxy(plan: RunPlan, corpus_id: str, reference: ModelEntry, version: str = __version__) -> ProxyManifest:
    """Provides the proxy of a run, judged by nobody yet; on a work pool a worker fits it.

    Args:
        plan: the run's plan
        corpus_id: the prepared corpus
        reference: the reference model, as its run names it
        version: version of miniplm that gives the work; a worker of another one refuses
    """
    workers.prepare_worker(version)
    storage, corpus = open_corpus(plan.storage, corpus_id)
    if plan.is_on_work_pool and find_run_proxy(storage, plan, corpus, reference) is None:
        parameters = {
            "plan": plan.for_worker().as_json(),
            "corpus_id": corpus_id,
            "reference": reference.as_json(),
            "version": __version__,
        }
        config = plan.scoring.proxy
        assert config is not None, "asked for only where the run has a proxy"
        tag = (
            f"proxy:{corpus_id}:{config.scorer}:{config.share}:{config.seed}:{plan.require_teacher().model_id}:{reference.model_id}"
        )
        run_on_pool("fit-proxy", f"fit proxy of {corpus_id}", parameters, plan, tag)
        return require_run_proxy(storage, plan, corpus, reference)
    return proxies.fit_proxy(storage, plan, corpus, reference)
