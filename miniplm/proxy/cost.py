"""What scoring costs with a proxy and without, in floating-point operations."""

from __future__ import annotations

from miniplm.records.manifests import Record
from miniplm.records.proxies import ProxyManifest

# A multiplication and an addition for each token and each pair of tokens.
_LINEAR_FLOPS_PER_TOKEN = 4.0


class ScoringFlops(Record):
    """FLOPs of all passes over the candidates: 2 N a token of a model with N parameters, as trainings are counted.

    `head` counts the reference's layers once more as a whole pass, though it makes no logits; the fit itself, on the labels alone, is left out.
    """

    teacher: float
    reference: float
    proxy: float
    without_proxy: float

    @property
    def with_proxy(self) -> float:
        return self.teacher + self.reference + self.proxy

    @property
    def saved(self) -> float:
        """The share of the FLOPs that the proxy saves; below 0 where it costs more than the teacher would."""
        return 1 - self.with_proxy / self.without_proxy if self.without_proxy else 0.0

    def describe(self) -> str:
        """For people."""
        change = f"{abs(self.saved):.0%} {'less' if self.saved >= 0 else 'more, so that it does not pay'}"
        return (
            f"{self.with_proxy:.3g} FLOPs where scoring all by both models takes {self.without_proxy:.3g} ({change}): teacher {self.teacher:.2g}, "
            f"reference {self.reference:.2g}, proxy {self.proxy:.2g}"
        )


def count_flops(
    kind: str, num_candidate_tokens: int, num_label_tokens: int, num_teacher_parameters: int, num_reference_parameters: int
) -> ScoringFlops:
    """The FLOPs of scoring so many candidate tokens, of which the teacher reads `num_label_tokens`."""
    of_reference = 2.0 * num_reference_parameters * num_candidate_tokens
    return ScoringFlops(
        teacher=2.0 * num_teacher_parameters * num_label_tokens,
        reference=of_reference,
        proxy=of_reference if kind == "head" else _LINEAR_FLOPS_PER_TOKEN * num_candidate_tokens,
        without_proxy=2.0 * num_teacher_parameters * num_candidate_tokens + of_reference,
    )


def count_proxy_flops(manifest: ProxyManifest, num_candidate_tokens: int) -> ScoringFlops:
    """The same of a fitted proxy."""
    return count_flops(
        manifest.kind,
        num_candidate_tokens,
        manifest.num_label_tokens,
        manifest.teacher.num_parameters,
        manifest.reference.num_parameters,
    )
