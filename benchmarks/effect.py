"""When does a student learn more from a selection than from random text, and how much: rules, ratios and seeds on the same scores.

    python -m benchmarks.effect deployments/configs/effect.yaml --rows docs/results/NAME.jsonl --plot docs/results/NAME.svg

Prepares, trains the reference and scores where that is not done, then trains and measures the students arm by arm. A row is written for
each as it is done; killed, the same command goes on with what has no row. `--tables` computes nothing and prints what the rows say.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.effect_arms import ARMS, CORPUS, DOMAIN, Arm, ScoresOf
from benchmarks.effect_rules import (
    Candidates,
    Floats,
    Scores,
    classify,
    find_repeated_shares,
    is_repeated,
    keep_among,
    rank_within_domains,
    read_candidates,
    read_kept,
    read_labelled,
    read_scores,
    read_texts,
    select_by,
    share_between,
    train_classifier,
)
from benchmarks.effect_tables import draw_gains, print_tables
from benchmarks.records import append_rows, describe_place
from miniplm.config.files import load_config
from miniplm.config.run import RunConfig, SelectionConfig, config_as_dict
from miniplm.derived.reader import load_derived
from miniplm.errors import ConfigError, MiniplmError, TrainingError
from miniplm.evaluation.milestones import find_checkpoint_evaluations
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.selections import SelectionManifest
from miniplm.run import stages
from miniplm.run.heldout_texts import list_texts
from miniplm.run.plan import RunPlan
from miniplm.run.resolution import resolve
from miniplm.run.scoring_models import open_scorer
from miniplm.run.trainings import know_student
from miniplm.scoring.shards import check_score_shard, score_shard
from miniplm.selection.budgets import count_selected
from miniplm.storage.root import Storage, digest_content
from miniplm.training.records import find_training


class Experiment:
    """What all arms share, made where it is first asked for: corpus, reference models, scores, texts of the candidates."""

    def __init__(self, config: RunConfig, labelled: str) -> None:
        self.config = config
        self.labelled = labelled
        self.storage = Storage(config.storage)
        self._scored: dict[ScoresOf, tuple[RunPlan, ModelEntry, Scores]] = {}

    @cached_property
    def corpus(self) -> CorpusManifest:
        corpus, _ = stages.prepare(self.storage, resolve(self.config))
        return corpus

    @cached_property
    def candidates(self) -> Candidates:
        if self.config.corpus.truth is None:
            raise ConfigError("corpus.truth is not given; name the field that says which documents are clean")
        return read_candidates(self.storage, self.corpus, self.config.corpus.truth)

    @cached_property
    def texts(self) -> list[str]:
        return read_texts(self.storage, self.corpus)

    @cached_property
    def logits(self) -> Floats:
        """What the quality classifier says of each candidate, (num_sequences,)."""
        texts, labels = read_labelled(self.labelled)
        return classify(train_classifier(texts, labels), self.texts)

    @cached_property
    def repeated_shares(self) -> Floats:
        """The share of each candidate, (num_sequences,), that an earlier one has too."""
        return find_repeated_shares(self.texts)

    def score(self, of: ScoresOf) -> tuple[RunPlan, ModelEntry, Scores]:
        """The scores of all candidates by the teacher and a reference."""
        if of not in self._scored:
            corpus, config = self.corpus, self.config
            changes: dict[str, Any] = {}
            if of.epochs is not None and (training := config.reference.training) is not None:
                changes["training"] = training.model_copy(update={"epochs": of.epochs, "steps": None})
            if of.architecture is not None:
                changes["architecture"] = of.architecture
            config = config.model_copy(update={"reference": config.reference.model_copy(update=changes)})
            plan = resolve(config)
            reference, _ = stages.provide_reference(self.storage, plan, corpus)
            for entry in (plan.require_teacher(), reference):
                self._score_shards(plan, entry)
            scores = read_scores(self.storage, corpus, plan.require_teacher().model_id, reference.model_id)
            self._scored[of] = plan, reference, scores
        return self._scored[of]

    def _score_shards(self, plan: RunPlan, entry: ModelEntry) -> None:
        shards = self.corpus.split_shards("candidate")
        pending = [shard for shard in shards if check_score_shard(self.storage, shard, entry.model_id).state != "done"]
        if pending:
            scorer = open_scorer(self.storage, entry, plan.scoring, self.corpus.sequence_length)
            for shard in pending:
                score_shard(self.storage, self.corpus, shard, entry, scorer)

    def select(self, arm: Arm, seed: int) -> SelectionManifest:
        """What an arm keeps. Rules that the product has are its own; for the others `effect_rules` makes the scores."""
        if arm.text == "dirty" and arm.rule in (CORPUS, DOMAIN):
            plan, reference, _ = self.score(arm.scores)
            config = SelectionConfig(ratio=arm.ratio, within="domain" if arm.rule == DOMAIN else "corpus")
            selection, _ = stages.select(self.storage, plan.model_copy(update={"selection": config}), self.corpus, reference)
            return selection
        candidates = self.candidates
        among = candidates.is_clean if arm.text == "clean" else np.ones(len(candidates.kind), dtype=bool)
        rules: dict[str, Callable[[], Floats]] = {
            "random": lambda: np.random.Generator(np.random.PCG64(seed)).random(len(among)),
            CORPUS: lambda: self.score(ScoresOf())[2].difference,
            DOMAIN: lambda: rank_within_domains(self.score(ScoresOf())[2].difference, candidates.domain, among),
            "perplexity": lambda: -self.score(ScoresOf())[2].teacher_nll,
            "everything": lambda: np.zeros(len(among)),
            "classifier": lambda: self.logits,
            "deduplicated": lambda: -self.repeated_shares,
        }
        values = rules[arm.rule]()
        if arm.rule == "deduplicated":
            among = among & ~is_repeated(self.repeated_shares)
        num_kept = count_selected(int(among.sum()), arm.ratio)
        return select_by(self.storage, self.corpus, candidates, keep_among(values, among), num_kept)

    def plan_student(self, arm: Arm, seed: int) -> tuple[RunPlan, str]:
        """The run that trains an arm's student, and the student's name: the configuration's first that trains on a selection."""
        plan = resolve(self.config)
        student = next((student for student in plan.students if student.method == "miniplm"), None)
        if student is None:
            raise ConfigError("the configuration has no student of method miniplm, which all arms take their settings from")
        changes: dict[str, Any] = {"training": student.training.model_copy(update={"seed": seed})}
        if arm.student is not None:
            changes["architecture"] = arm.student
        student = student.model_copy(update=changes)
        # Its own folder; no key, so that the plan of the run that it is a copy of stays what it is.
        changes = {"name": f"{plan.name}-{arm.name}-{seed}", "key": "", "students": (student,), "trainings": {}}
        return plan.model_copy(update=changes), student.name

    def provide_text(self, arm: Arm, seed: int) -> tuple[SelectionManifest, RunPlan, str]:
        """Selects what a student is trained on, and makes it in the student's own tokens, with the held-out text."""
        selection = self.select(arm, seed)
        plan, name = self.plan_student(arm, seed)
        stages.derive(self.storage, plan, self.corpus, selection, name)
        return selection, plan, name

    def run(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Trains and measures one student; its row."""
        selection, plan, name = self.provide_text(arm, seed)
        record, _ = stages.train(self.storage, plan, self.corpus, selection, name)
        record, _ = stages.evaluate(self.storage, plan, self.corpus, name, record)
        training, evaluation = find_training(self.storage, record.training_id), record.evaluation
        assert training is not None
        assert evaluation is not None
        found = find_checkpoint_evaluations(self.storage, list_texts(self.storage, plan, self.corpus)[0], record.training_id)
        tokens_per_step = record.num_tokens / record.num_steps
        return {
            "arm": arm.name,
            "seed": seed,
            "training_id": record.training_id,
            "selection_id": selection.selection_id,
            "corpus_id": selection.corpus_id,
            "num_parameters": record.num_parameters,
            "num_tokens": record.num_tokens,
            "num_kept_tokens": selection.num_selected_tokens,
            "epochs": record.num_tokens / self._count_epoch_tokens(plan, selection, name),
            "seconds": round(training.seconds, 1),
            "final_loss": training.final_loss,
            "heldout": evaluation.overall.nats_per_token,
            "bits_per_byte": evaluation.overall.bits_per_byte,
            "domains": {domain: loss.nats_per_token for domain, loss in evaluation.domains.items()},
            "curve": [[round(step * tokens_per_step), item.overall.nats_per_token] for step, item in found.items()],
            "kept": self.describe_kept(selection),
        }

    def _count_epoch_tokens(self, plan: RunPlan, selection: SelectionManifest, name: str) -> int:
        """The tokens of one pass over what a student is trained on, in its own tokens."""
        derived_ids = know_student(self.storage, plan, self.corpus, selection, name).derived_ids
        return sum(load_derived(self.storage, derived_id).num_tokens for derived_id in derived_ids) or selection.num_selected_tokens

    def describe_kept(self, selection: SelectionManifest) -> dict[str, dict[str, list[int]]]:
        """Of each kind and each domain the tokens that were kept, and all."""
        candidates, kept = self.candidates, read_kept(self.storage, self.corpus, selection)
        facts: dict[str, dict[str, list[int]]] = {}
        for name, column in (("kinds", candidates.kind), ("domains", candidates.domain)):
            facts[name] = {
                value: [
                    int(candidates.num_tokens[(column == value) & kept].sum()),
                    int(candidates.num_tokens[column == value].sum()),
                ]
                for value in np.unique(column).tolist()
            }
        return facts

    def describe_scores(self, of: ScoresOf) -> dict[str, Any]:
        """What the difference score's variance lies between, and what scoring took."""
        (plan, reference, scores), candidates = self.score(of), self.candidates
        teacher, clean = plan.require_teacher(), candidates.is_clean
        training = find_training(self.storage, reference.source)
        score = scores.difference
        return {
            "scores": of.name,
            "corpus_id": self.corpus.corpus_id,
            "num_candidates": len(score),
            "num_candidate_tokens": int(candidates.num_tokens.sum()),
            "num_clean": int(clean.sum()),
            "between_domains": share_between(score, candidates.domain),
            "between_kinds": share_between(score, candidates.kind),
            "between_domains_of_clean": share_between(score[clean], candidates.domain[clean]),
            "mean_by_kind": {kind: float(score[candidates.kind == kind].mean()) for kind in np.unique(candidates.kind).tolist()},
            "clean_by_domain": {
                domain: float(score[clean & (candidates.domain == domain)].mean())
                for domain in np.unique(candidates.domain).tolist()
            },
            "reference_nll_of_clean": float(scores.reference_nll[clean].mean()),
            "teacher_nll_of_clean": float(scores.teacher_nll[clean].mean()),
            "teacher_parameters": teacher.num_parameters,
            "reference_parameters": reference.num_parameters,
            "reference_tokens": 0 if training is None else training.num_tokens,
        }


def run_arms(experiment: Experiment, names: Sequence[str], seeds: Sequence[int], path: Path, num_processes: int = 1) -> None:
    """Adds a row for each arm and seed that has none, and one for each reference's scores, as each is done; students side by side in `num_processes`."""
    settings = digest_content(config_as_dict(experiment.config))

    def is_there(**facts: Any) -> bool:
        wanted = facts | {"settings": settings}
        found = [row for row in read_rows(path) if all(row.get(name) == value for name, value in wanted.items())]
        # The same settings may be of other text; rows of before corpora were noted are taken as they were.
        return any("corpus_id" not in row or row["corpus_id"] == experiment.corpus.corpus_id for row in found)

    def add(row: dict[str, Any]) -> None:
        append_rows(path, [row | {"settings": settings, **describe_place(torch.device("cpu"))}])

    def run_student(task: tuple[Arm, int]) -> None:
        row = experiment.run(*task)
        add(row)
        print(f"{task[0].name} {task[1]}: {row['heldout']:.4f} nats a token, {row['seconds']:.0f} s", flush=True)

    chosen = [arm for arm in ARMS if arm.name in names]
    for arm in chosen:
        if arm.needs_scores and not is_there(scores=arm.scores.name):
            add(experiment.describe_scores(arm.scores))
    tasks = [(arm, seed) for arm in chosen for seed in seeds if not is_there(arm=arm.name, seed=seed)]
    if num_processes == 1:
        for task in tasks:
            run_student(task)
        return
    for task in tasks:  # here, as several students share what they are trained on
        experiment.provide_text(*task)
    _run_side_by_side(run_student, tasks, num_processes)


def _run_side_by_side(run_student: Callable[[tuple[Arm, int]], None], tasks: Sequence[tuple[Arm, int]], num_processes: int) -> None:
    """Runs students in forks of this process, so many at a time, each on a thread; the first that fails ends it once the others at work are done."""
    waiting, at_work = list(tasks), {}
    failed = False
    while at_work or (waiting and not failed):
        while waiting and not failed and len(at_work) < num_processes:
            task = waiting.pop(0)
            child = multiprocessing.get_context("fork").Process(target=run_student, args=(task,))
            child.start()
            at_work[child.sentinel] = child
        for sentinel in multiprocessing.connection.wait(list(at_work)):
            child = at_work.pop(sentinel)
            child.join()
            failed |= child.exitcode != 0
    if failed:
        raise TrainingError("a student failed, as is told above; the same command goes on with those that have no row")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effect", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "config", nargs="?", default="deployments/configs/effect.yaml", help="students miniplm and pretrain, and truth"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as `miniplm run` takes it")
    parser.add_argument(
        "--rows", type=Path, required=True, metavar="FILE", help="rows, one JSON object a line; what is there is not done again"
    )
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], default=[arm.name for arm in ARMS], metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--processes", type=int, default=1, help="students that are trained side by side, each on a thread of its own"
    )
    parser.add_argument(
        "--labelled", default="samples/effect/labelled", help="folder of documents with their kinds, for the classifier"
    )
    parser.add_argument("--tables", action="store_true", help="compute nothing, print the tables of the rows that are there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the gains by tokens a parameter (.svg or .png)")
    given = parser.parse_args(arguments)
    try:
        if not given.tables:
            run_arms(
                Experiment(load_config(given.config, given.set), given.labelled),
                given.arms,
                given.seeds,
                given.rows,
                given.processes,
            )
        rows = read_rows(given.rows)
        if not rows:
            raise ConfigError(f"{given.rows} has no row; leave --tables out to make some")
    except MiniplmError as error:
        print(f"effect: {error}", file=sys.stderr)
        return 2
    except ConfigError as error:
        print(f"effect: {error}", file=sys.stderr)
        return 2
    arms = [arm for arm in ARMS if any(row.get("arm") == arm.name for row in rows)]
    print_tables(rows, arms)
    if given.plot:
        draw_gains(rows, arms, given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
