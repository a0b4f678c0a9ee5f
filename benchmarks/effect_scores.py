"""Scores that the arms of the experiment on the effect go by: of the configured models, of other references, through a proxy, by a tuned teacher."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zstandard

from benchmarks.effect_arms import DOMAIN, TUNING_EPOCHS, Arm, ScoresOf
from benchmarks.effect_rules import Candidates, Scores, read_scores, share_between
from miniplm.config.proxy import ProxyConfig
from miniplm.config.run import RunConfig, SelectionConfig, SourceConfig, TeacherConfig, TrainingConfig, TuningConfig
from miniplm.errors import ConfigError, SourceError
from miniplm.proxy.cost import count_proxy_flops
from miniplm.proxy.labels import draw_labels
from miniplm.proxy.prediction import predict_shard
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.proxies import ProxyManifest
from miniplm.run import stages
from miniplm.run.plan import RunPlan
from miniplm.run.proxies import judge_proxy, measure_run_proxy, provide_proxy
from miniplm.run.resolution import resolve
from miniplm.run.scoring_models import open_proxy_scorer, open_scorer
from miniplm.scoring.shards import check_score_shard, score_shard
from miniplm.storage.root import Storage
from miniplm.training.records import find_training

TARGET = "effect/labelled-clean.jsonl"


def select_as(arm: Arm) -> SelectionConfig:
    """The product's own rule that an arm stands for."""
    return SelectionConfig(ratio=arm.ratio, within="domain" if arm.rule == DOMAIN else "corpus")


@dataclass(frozen=True)
class Scored:
    """The candidates as two models scored them, and the proxy where one did in the teacher's place."""

    plan: RunPlan
    reference: ModelEntry
    scores: Scores
    proxy: ProxyManifest | None = None


class Scoring:
    """Makes scores where they are asked for, each once."""

    def __init__(self, storage: Storage, config: RunConfig, corpus: CorpusManifest, labelled: str) -> None:
        self.storage, self.config, self.corpus, self.labelled = storage, config, corpus, labelled
        self._done: dict[ScoresOf, Scored] = {}

    def provide(self, of: ScoresOf) -> Scored:
        """The scores of all candidates. Raises `ProxyError` where a proxy has too few labels, or is no better than chance."""
        if of not in self._done:
            plan = resolve(self.configure(of))
            reference, _ = stages.provide_reference(self.storage, plan, self.corpus)
            if of.tuned:
                plan, _ = stages.provide_teacher(self.storage, plan, self.corpus, reference)
            teacher, proxy = plan.require_teacher(), None
            config = plan.scoring.proxy
            self._score(plan, teacher, self.corpus if config is None else draw_labels(self.storage, self.corpus, config))
            self._score(plan, reference, self.corpus)
            if config is not None:
                proxy = provide_proxy(self.storage, plan, self.corpus, reference)
                judge_proxy(self.storage, proxy, plan)
                self._predict(plan, proxy)
            scorer_id = teacher.model_id if proxy is None else proxy.proxy_id
            scores = read_scores(self.storage, self.corpus, scorer_id, reference.model_id)
            self._done[of] = Scored(plan, reference, scores, proxy)
        return self._done[of]

    def configure(self, of: ScoresOf) -> RunConfig:
        """The configuration of a run that has such scores. A proxy is taken at any overlap that beats chance: what that is worth is the question."""
        config, changes = self.config, dict[str, Any]()
        training = config.reference.training
        if of.epochs is not None and training is not None:
            changes["training"] = training.model_copy(update={"epochs": of.epochs, "steps": None})
        if of.architecture is not None:
            changes["architecture"] = of.architecture
        config = config.model_copy(update={"reference": config.reference.model_copy(update=changes)})
        if of.proxy_share is not None:
            proxy = ProxyConfig(share=of.proxy_share, scorer=of.proxy, min_overlap=0)
            rule = config.selection.model_copy(update={"within": "domain"})
            scoring = config.scoring.model_copy(update={"proxy": proxy})
            config = config.model_copy(update={"scoring": scoring, "selection": rule})
        if of.tuned:
            if training is None:
                raise ConfigError(
                    "reference.model is given; the arm with a tuned teacher takes its settings from reference.training"
                )
            tuned_on = TuningConfig(sources=(self.write_target(),), training=_tune(training))
            config = config.model_copy(update={"teacher": TeacherConfig(tuned_on=tuned_on, dtype=config.reference.dtype)})
        return config

    def write_target(self) -> SourceConfig:
        """The clean documents of the labelled sample, which are in no other part, as one file at the storage root."""
        lines = [line for path in sorted(Path(self.labelled).glob("*.jsonl.zst")) for line in _read_clean(path)]
        if not lines:
            raise SourceError(
                f"{self.labelled} has no clean document; `python -m scripts.experiment_corpus` makes a labelled sample"
            )
        content = "".join(line + "\n" for line in lines).encode()
        if not self.storage.exists(TARGET) or self.storage.read_bytes(TARGET) != content:
            with self.storage.publish(TARGET) as file:
                file.write_bytes(content)
        return SourceConfig(path=self.storage.path(TARGET), domain="meta.domain")

    def _score(self, plan: RunPlan, entry: ModelEntry, corpus: CorpusManifest) -> None:
        shards = corpus.split_shards("candidate")
        pending = [shard for shard in shards if check_score_shard(self.storage, shard, entry.model_id).state != "done"]
        if pending:
            scorer = open_scorer(self.storage, entry, plan.scoring, corpus.sequence_length)
            for shard in pending:
                score_shard(self.storage, corpus, shard, entry, scorer)

    def _predict(self, plan: RunPlan, proxy: ProxyManifest) -> None:
        shards = self.corpus.split_shards("candidate")
        pending = [shard for shard in shards if check_score_shard(self.storage, shard, proxy.proxy_id).state != "done"]
        if pending:
            scorer = open_proxy_scorer(self.storage, proxy.entry, plan.scoring, self.corpus.sequence_length)
            for shard in pending:
                predict_shard(self.storage, self.corpus, shard, proxy.entry, scorer)

    def describe(self, of: ScoresOf, candidates: Candidates) -> dict[str, Any]:
        """What the difference score's variance lies between, what scoring took, and how well a proxy predicts."""
        scored = self.provide(of)
        teacher, clean, score = scored.plan.require_teacher(), candidates.is_clean, scored.scores.difference
        num_tokens = int(candidates.num_tokens.sum())
        facts = {
            "scores": of.name,
            "corpus_id": self.corpus.corpus_id,
            "num_candidates": len(score),
            "num_candidate_tokens": num_tokens,
            "num_clean": int(clean.sum()),
            "between_domains": share_between(score, candidates.domain),
            "between_kinds": share_between(score, candidates.kind),
            "between_domains_of_clean": share_between(score[clean], candidates.domain[clean]),
            "mean_by_kind": _average(score, candidates.kind, candidates.kind != ""),
            "clean_by_domain": _average(score, candidates.domain, clean),
            "reference_nll_of_clean": float(scored.scores.reference_nll[clean].mean()),
            "teacher_nll_of_clean": float(scored.scores.teacher_nll[clean].mean()),
            "teacher_parameters": teacher.num_parameters,
            "reference_parameters": scored.reference.num_parameters,
            "reference_tokens": self._count_trained(scored.reference),
        }
        if of.tuned:
            facts["tuning_tokens"] = self._count_trained(teacher)
        if scored.proxy is not None:
            facts["teacher_tokens"] = scored.proxy.num_label_tokens
            facts["proxy_flops"] = count_proxy_flops(scored.proxy, num_tokens).proxy
            facts["num_labels"] = scored.proxy.num_labels
            facts["fidelity"] = asdict(measure_run_proxy(self.storage, scored.proxy, scored.plan))
        return facts

    def _count_trained(self, entry: ModelEntry) -> int:
        training = find_training(self.storage, entry.source)
        return 0 if training is None else training.num_tokens


def _tune(training: TrainingConfig) -> TrainingConfig:
    """A third of the peak learning rate, as the weights are trained already."""
    rate = training.learning_rate / 3
    return training.model_copy(update={"epochs": TUNING_EPOCHS, "steps": None, "learning_rate": rate})


def _read_clean(path: Path) -> list[str]:
    lines = zstandard.decompress(path.read_bytes()).decode().splitlines()
    return [line for line in lines if json.loads(line)["meta"]["kind"] == "clean"]


def _average(values: Any, group: Any, among: Any) -> dict[str, float]:
    """The mean of values (num_sequences,) of each group (num_sequences,) of those `among` (num_sequences,)."""
    return {name: float(values[among & (group == name)].mean()) for name in sorted(set(group[among].tolist()))}
