"""The proxy of a run: whose scores its selection is made of, how the proxy is fitted, and the gate that it has to pass."""

from __future__ import annotations

from miniplm.errors import ProxyError, ScoreJoinError
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.proxy.identity import find_proxy, resolve_proxy_id
from miniplm.proxy.labels import draw_labels, find_labels
from miniplm.proxy.measuring import ProxyFidelity, measure_proxy
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.proxies import ProxyManifest
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage


def find_labelled_corpus(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> CorpusManifest | None:
    """What the teacher of a run scores: the corpus, or the labelled sequences of it; None while these are not drawn."""
    return corpus if plan.scoring.proxy is None else find_labels(storage, corpus, plan.scoring.proxy)


def provide_labelled_corpus(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, on_progress: ProgressCallback = ignore_progress
) -> CorpusManifest:
    """As `find_labelled_corpus`; draws what is not drawn yet. Raises `ProxyError` where the share gives too few labels."""
    return corpus if plan.scoring.proxy is None else draw_labels(storage, corpus, plan.scoring.proxy, on_progress)


def find_run_proxy(storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry | None) -> ProxyManifest | None:
    """The fitted proxy of a run; None where the run has none, or not yet."""
    config = plan.scoring.proxy
    if config is None or reference is None:
        return None
    labels = find_labels(storage, corpus, config)
    if labels is None:
        return None
    proxy_id = resolve_proxy_id(storage, corpus, labels, config, plan.require_teacher(), reference)
    return None if proxy_id is None else find_proxy(storage, proxy_id)


def require_run_proxy(storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry) -> ProxyManifest:
    """As `find_run_proxy`, of a run that is to have one. Raises `ScoreJoinError` where it is not fitted yet."""
    manifest = find_run_proxy(storage, plan, corpus, reference)
    if manifest is None:
        raise ScoreJoinError(
            f"corpus {corpus.corpus_id} has no proxy yet: it is fitted once the teacher has scored the labelled sequences and the reference all; run "
            "`miniplm score CONFIG --model teacher`, then `--model reference`, then `--model proxy`"
        )
    return manifest


def find_scorer_ids(storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry) -> tuple[str, str]:
    """Whose scores a selection joins: those of the teacher, or of the proxy in its place, and of the reference.

    Raises `ScoreJoinError` where the proxy is not fitted yet.
    """
    if plan.scoring.proxy is None:
        return plan.require_teacher().model_id, reference.model_id
    return require_run_proxy(storage, plan, corpus, reference).proxy_id, reference.model_id


def provide_proxy(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, reference: ModelEntry, on_progress: ProgressCallback = ignore_progress
) -> ProxyManifest:
    """Fits the proxy of a run where it is not there yet; `head` opens the reference on the run's device. Raises as `fit_proxy`."""
    config, teacher = plan.scoring.proxy, plan.require_teacher()
    assert config is not None, "asked for only where the run has a proxy"
    labels = draw_labels(storage, corpus, config, on_progress)
    if (found := find_run_proxy(storage, plan, corpus, reference)) is not None:
        return found
    from miniplm.proxy.fitting import fit_proxy  # imports SciPy's sparse matrices

    if config.scorer == "linear":
        return fit_proxy(storage, corpus, labels, config, teacher, reference, on_progress=on_progress)
    from miniplm.models.devices import describe_device
    from miniplm.run.scoring_models import open_scorer, pool_by

    scorer = open_scorer(storage, reference, plan.scoring, corpus.sequence_length)
    pool, device = pool_by(scorer, corpus.tokenizer.eos_token_id), describe_device(scorer.model.device)
    return fit_proxy(storage, corpus, labels, config, teacher, reference, pool, device, on_progress)


def measure_run_proxy(storage: Storage, manifest: ProxyManifest, plan: RunPlan) -> ProxyFidelity:
    """How well a proxy predicts what the run's rule selects."""
    return measure_proxy(storage, manifest, plan.selection)


def judge_proxy(storage: Storage, manifest: ProxyManifest, plan: RunPlan) -> ProxyFidelity:
    """Raises `ProxyError` where the proxy falls under `scoring.proxy.min_overlap`, or is no better than chance."""
    config, selection = plan.scoring.proxy, plan.selection
    assert config is not None, "asked for only where the run has a proxy"
    fidelity = measure_run_proxy(storage, manifest, plan)
    if fidelity.passes(config.min_overlap):
        return fidelity
    other = "head" if config.scorer == "linear" else "linear"
    way_out = (
        f"Label more (scoring.proxy.share is {config.share:g}, {manifest.num_labels:,} labels), try scoring.proxy.scorer={other}, "
        "or leave scoring.proxy out, which has the teacher score all"
    )
    if fidelity.num_selected == 0:
        raise ProxyError(
            f"proxy {manifest.proxy_id}: of {fidelity.num_sequences:,} labelled sequences {selection.title} selects "
            f"none, so that nothing was measured. {way_out}"
        )
    if not fidelity.beats_chance:
        limit = f"no better than chance, which gives {fidelity.chance:.1%} (within {2 * fidelity.chance_error:.1%})"
    else:
        limit = f"less than scoring.proxy.min_overlap {config.min_overlap:g}; chance gives {fidelity.chance:.1%}"
    raise ProxyError(
        f"proxy {manifest.proxy_id}: of the {fidelity.num_selected:,} sequences that full scores select from {fidelity.num_sequences:,} labelled "
        f"ones ({selection.title}), its predictions, made without their scores, select {fidelity.overlap:.1%} "
        f"(standard error {fidelity.overlap_error:.1%}, Spearman {fidelity.spearman:.3f}): {limit}. {way_out}"
        + ("" if not fidelity.beats_chance else ", or allow less overlap")
    )
