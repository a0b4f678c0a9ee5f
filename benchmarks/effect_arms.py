"""What the experiment on the effect compares: each arm is a rule, a ratio, and what else differs from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BASELINE = "random"
ARCHITECTURES = "deployments/configs/architectures"


@dataclass(frozen=True)
class ScoresOf:
    """The reference behind difference scores: None where it is as the configuration says."""

    epochs: float | None = None
    architecture: str | None = None

    @property
    def name(self) -> str:
        """What rows call these scores."""
        if self.architecture is not None:
            return f"reference {self.architecture.rpartition('/')[2]}"
        return "configured" if self.epochs is None else f"reference of {self.epochs:g} epochs"


@dataclass(frozen=True)
class Arm:
    """What students are trained on: a rule at a ratio of all candidates or of the clean ones, with a reference and a student of some size."""

    name: str
    title: str
    rule: str
    ratio: float = 0.5
    text: Literal["dirty", "clean"] = "dirty"
    student: str | None = None  # an architecture other than the configuration's
    reference_epochs: float | None = None  # other than the configuration's
    reference: str | None = None  # an architecture other than the configuration's
    baseline: str = BASELINE

    @property
    def needs_scores(self) -> bool:
        """Whether the rule goes by the scores of both models, or of the teacher."""
        return self.rule in (DOMAIN, CORPUS, "perplexity")

    @property
    def scores(self) -> ScoresOf:
        """Whose scores the rule goes by."""
        return ScoresOf(self.reference_epochs, self.reference)


DOMAIN, CORPUS = "difference by domain", "difference"
# In the order in which they are trained: where time runs out, what comes first is there.
ARMS = (
    Arm("random", "random half", "random"),
    Arm("corpus", "MiniPLM, best half of all", CORPUS),
    Arm("domain", "MiniPLM, best half of each domain", DOMAIN),
    Arm("everything", "everything, half the epochs", "everything", 1.0),
    Arm("classifier", "quality classifier", "classifier"),
    Arm("perplexity", "lowest perplexity of the teacher", "perplexity"),
    Arm("clean-random", "random half", "random", text="clean", baseline="clean-random"),
    Arm("clean-corpus", "MiniPLM, best half of all", CORPUS, text="clean", baseline="clean-random"),
    Arm("clean-domain", "MiniPLM, best half of each domain", DOMAIN, text="clean", baseline="clean-random"),
    Arm("domain-0.25", "MiniPLM, best quarter of each domain, twice the epochs", DOMAIN, 0.25),
    Arm("domain-0.9", "MiniPLM, best 90 % of each domain", DOMAIN, 0.9),
    Arm("large-random", "random half", "random", student="qwen-tiny", baseline="large-random"),
    Arm("large-corpus", "MiniPLM, best half of all", CORPUS, student="qwen-tiny", baseline="large-random"),
    Arm("large-domain", "MiniPLM, best half of each domain", DOMAIN, student="qwen-tiny", baseline="large-random"),
    Arm("deduplicated", "without repeated text", "deduplicated", 1.0),
    Arm("reference-0.25", "best half of each domain, reference of a quarter epoch", DOMAIN, reference_epochs=0.25),
    Arm("reference-4", "best half of each domain, reference of four epochs", DOMAIN, reference_epochs=4),
    # Beside the configuration's 7 M parameters: most of a small one's are its embedding of the teacher's vocabulary, and with it qwen-104m has 51 M.
    Arm("reference-small", "best half of each domain, reference of 3 M parameters", DOMAIN, reference=f"{ARCHITECTURES}/qwen-0.3m"),
    Arm("reference-large", "best half of each domain, reference of 51 M parameters", DOMAIN, reference="qwen-104m"),
)
