"""What the experiment on the effect compares: each arm is a rule, a ratio, and what else differs from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from miniplm.config.methods import Method
from miniplm.config.proxy import ProxyKind

BASELINE = "random"
ARCHITECTURES = "deployments/configs/architectures"


@dataclass(frozen=True)
class ScoresOf:
    """What is behind difference scores: the reference, None where it is as the configuration says, and what stands in the teacher's place.

    `proxy_share` of the candidates the teacher scores, a proxy the rest; `tuned`: the teacher is the reference, tuned on labelled clean text.
    """

    epochs: float | None = None
    architecture: str | None = None
    proxy_share: float | None = None
    proxy: ProxyKind = "linear"
    tuned: bool = False

    @property
    def name(self) -> str:
        """What rows call these scores."""
        if self.architecture is not None:
            return f"reference {self.architecture.rpartition('/')[2]}"
        if self.proxy_share is not None:
            return f"{self.proxy} proxy of {self.proxy_share:.0%}"
        if self.tuned:
            return "tuned teacher"
        return "configured" if self.epochs is None else f"reference of {self.epochs:g} epochs"


@dataclass(frozen=True)
class Arm:
    """What students are trained on: a rule at a ratio of all candidates or of the clean ones, with scores of some kind and a student of some size.

    `method`: seqkd reads random text whose ends the teacher wrote, whatever the rule; miniplm+vanilla-kd what the rule keeps, with the teacher along.
    `vocabulary`: the student's own tokens, or the corpus's, which a teacher along needs; their losses are told apart by a baseline of their own.
    `budget`: as many steps as configured; as many as cost what those do without a teacher ("training"); or as many as cost, all counted, what
    MiniPLM's student costs with the scores that it needs ("all").
    """

    name: str
    title: str
    rule: str
    ratio: float = 0.5
    text: Literal["dirty", "clean"] = "dirty"
    student: str | None = None  # an architecture other than the configuration's
    scores: ScoresOf = ScoresOf()
    method: Method = "miniplm"
    vocabulary: Literal["own", "corpus"] = "own"
    budget: Literal["steps", "training", "all"] = "steps"
    baseline: str = BASELINE

    @property
    def needs_scores(self) -> bool:
        """Whether the rule goes by the scores of both models, or of the teacher."""
        return self.rule in (DOMAIN, CORPUS, "perplexity")


DOMAIN, CORPUS = "difference by domain", "difference"
ALONG: Method = "miniplm+vanilla-kd"
TUNING_EPOCHS = 4  # of 60,000 labelled tokens: what an afternoon of labelling gives is little
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
    Arm("reference-0.25", "best half of each domain, reference of a quarter epoch", DOMAIN, scores=ScoresOf(epochs=0.25)),
    Arm("reference-4", "best half of each domain, reference of four epochs", DOMAIN, scores=ScoresOf(epochs=4)),
    # Beside the configuration's 7 M parameters: most of a small one's are its embedding of the teacher's vocabulary, and with it qwen-104m has 51 M.
    Arm(
        "reference-small",
        "best half of each domain, reference of 3 M parameters",
        DOMAIN,
        scores=ScoresOf(architecture=f"{ARCHITECTURES}/qwen-0.3m"),
    ),
    Arm(
        "reference-large",
        "best half of each domain, reference of 51 M parameters",
        DOMAIN,
        scores=ScoresOf(architecture="qwen-104m"),
    ),
    Arm("tuned", "best half of each domain, teacher tuned on labelled clean text", DOMAIN, scores=ScoresOf(tuned=True)),
    Arm("proxy-0.05", "best half of each domain, 5 % scored by the teacher", DOMAIN, scores=ScoresOf(proxy_share=0.05)),
    Arm("proxy-0.2", "best half of each domain, 20 % scored by the teacher", DOMAIN, scores=ScoresOf(proxy_share=0.2)),
    Arm(
        "proxy-head-0.2", "the same with a proxy on the reference's states", DOMAIN, scores=ScoresOf(proxy_share=0.2, proxy="head")
    ),
    Arm("seqkd", "SeqKD, as many steps", "random", method="seqkd"),
    Arm("seqkd-matched", "SeqKD, as many FLOPs as MiniPLM in all", "random", method="seqkd", budget="all"),
    Arm("everything-matched", "everything, as many FLOPs as MiniPLM in all", "everything", 1.0, budget="all"),
    Arm("wide-random", "random half", "random", vocabulary="corpus", baseline="wide-random"),
    Arm("wide-domain", "MiniPLM, best half of each domain", DOMAIN, vocabulary="corpus", baseline="wide-random"),
    # By the method of that name on what the rule keeps: here the baseline's random text, to the same sequence.
    Arm(
        "vanilla-kd",
        "vanilla KD, as many FLOPs in training",
        "random",
        method=ALONG,
        vocabulary="corpus",
        budget="training",
        baseline="wide-random",
    ),
    Arm(
        "vanilla-kd-matched",
        "vanilla KD, as many FLOPs as MiniPLM in all",
        "random",
        method=ALONG,
        vocabulary="corpus",
        budget="all",
        baseline="wide-random",
    ),
)
