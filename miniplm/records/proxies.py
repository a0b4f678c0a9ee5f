"""What a proxy is: which scores it learned from, and what was measured of it."""

from __future__ import annotations

from typing import Literal

from miniplm.records.manifests import ModelEntry, Record


class ProxyManifest(Record):
    """A fitted proxy, beside its weights; it is complete when this is at the storage root.

    `labels_id` is the corpus of the `num_labels` sequences that the teacher scored, a share `share` of the candidates of `corpus_id`. Of them
    `num_fitted` fit into memory and were learned from. `penalty` is that of the ridge regression, in units of a feature row's squared length.
    """

    proxy_id: str
    kind: Literal["linear", "head"]
    corpus_id: str
    labels_id: str
    share: float
    seed: int
    teacher: ModelEntry
    reference: ModelEntry
    num_labels: int
    num_label_tokens: int
    num_fitted: int
    num_features: int
    penalty: float
    weights_digest: str
    measurement_digest: str
    seconds: float
    device: str
    versions: dict[str, str]

    @property
    def entry(self) -> ModelEntry:
        """The proxy as what scores in the teacher's place."""
        return ModelEntry(
            model_id=self.proxy_id,
            source=self.proxy_id,
            stored=True,
            trust_remote_code=self.reference.trust_remote_code,
            dtype=self.reference.dtype if self.kind == "head" else "float32",
            attention=self.reference.attention,
            weights_digest=self.weights_digest,
            num_parameters=self.num_features + 1,
            proxy=self.kind,
        )
