"""What a run's signals need to be found by, beside their own files."""

from __future__ import annotations

from miniplm.records.manifests import CorpusManifest
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage


def provide_signal_keys(storage: Storage, corpus: CorpusManifest, plan: RunPlan) -> None:
    """Reads the digests of texts out of the sources where a signal is found by them. Raises what the sources raise."""
    if any(signal.key == "text_digest" for signal in plan.selection.signals):
        from miniplm.corpus.text_digests import provide_text_digests

        provide_text_digests(storage, plan.corpus, corpus)
