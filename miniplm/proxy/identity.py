"""What names a proxy, and whether it is there; this is asked often, and loads no more than records."""

from __future__ import annotations

from miniplm import layout
from miniplm.config.proxy import ProxyConfig
from miniplm.records.manifests import CorpusManifest, ModelEntry, ScoreShardManifest
from miniplm.records.proxies import ProxyManifest
from miniplm.records.stored import find_record
from miniplm.scoring.shards import find_score_manifests
from miniplm.storage.root import Storage, digest_content

# Raised when a change of the code gives the same labels other predictions.
PROXY_VERSION = 1


def resolve_proxy_id(
    storage: Storage,
    corpus: CorpusManifest,
    labels: CorpusManifest,
    config: ProxyConfig,
    teacher: ModelEntry,
    reference: ModelEntry,
) -> str | None:
    """The id of the proxy, made of the digests of all scores that it learns from; None while one of them is missing. They are not read."""
    manifests = find_label_manifests(storage, corpus, labels, teacher, reference)
    if manifests is None:
        return None
    digests = [manifest.digest for of_model in manifests for manifest in of_model]
    content = [PROXY_VERSION, corpus.corpus_id, labels.corpus_id, config.scorer, teacher.model_id, reference.model_id, digests]
    return f"proxy-{config.scorer}-{digest_content(content)}"


def find_proxy(storage: Storage, proxy_id: str) -> ProxyManifest | None:
    """A fitted proxy, where it is there whole."""
    manifest = find_record(storage, layout.proxy_manifest(proxy_id), ProxyManifest)
    if manifest is None:
        return None
    files = (
        (layout.proxy_weights(proxy_id), manifest.weights_digest),
        (layout.proxy_measurement(proxy_id), manifest.measurement_digest),
    )
    return manifest if all(storage.holds(path, digest) for path, digest in files) else None


def find_label_manifests(
    storage: Storage, corpus: CorpusManifest, labels: CorpusManifest, teacher: ModelEntry, reference: ModelEntry
) -> tuple[list[ScoreShardManifest], list[ScoreShardManifest]] | None:
    """Those of the labels under the teacher, and of all candidates under the reference; None where one is missing."""
    of_teacher = find_score_manifests(storage, labels, teacher.model_id)
    of_reference = find_score_manifests(storage, corpus, reference.model_id)
    return None if of_teacher is None or of_reference is None else (of_teacher, of_reference)
