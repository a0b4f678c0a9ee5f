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
from benchmarks.effect_costs import count_scores, match_steps
from benchmarks.effect_rules import (
    Candidates,
    Floats,
    classify,
    find_repeated_shares,
    is_repeated,
    keep_among,
    rank_within_domains,
    read_candidates,
    read_kept,
    read_labelled,
    read_texts,
    select_by,
    train_classifier,
)
from benchmarks.effect_scores import Scored, Scoring, select_as
from benchmarks.effect_tables import draw_gains, print_tables, rows_of
from benchmarks.records import append_rows, describe_place
from miniplm.config.files import load_config
from miniplm.config.methods import METHOD_FACTS
from miniplm.config.run import RunConfig, StudentConfig, config_as_dict
from miniplm.derived.reader import load_derived
from miniplm.errors import ConfigError, MiniplmError, ProxyError, TrainingError
from miniplm.evaluation.milestones import find_checkpoint_evaluations
from miniplm.models.architectures import build_empty_model, count_parameters, resolve_vocab_size
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.run import stages
from miniplm.run.outside_texts import list_texts
from miniplm.run.plan import RunPlan
from miniplm.run.resolution import resolve
from miniplm.run.training_plans import load_own_tokenizer
from miniplm.run.trainings import know_student
from miniplm.selection.budgets import count_selected
from miniplm.storage.root import Storage, digest_content
from miniplm.training.records import find_training


class Experiment:
    """What all arms share, made where it is first asked for: corpus, reference models, scores, texts of the candidates."""

    def __init__(self, config: RunConfig, labelled: str) -> None:
        self.config = config
        self.labelled = labelled
        self.storage = Storage(config.storage)

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

    @cached_property
    def scoring(self) -> Scoring:
        return Scoring(self.storage, self.config, self.corpus, self.labelled)

    def score(self, of: ScoresOf) -> Scored:
        """The scores of all candidates, made where they are not there yet."""
        return self.scoring.provide(of)

    def select(self, arm: Arm, seed: int) -> SelectionManifest:
        """What an arm keeps. Rules that the product has are its own; for the others `effect_rules` makes the scores."""
        if arm.text == "dirty" and arm.rule in (CORPUS, DOMAIN):
            scored = self.score(arm.scores)
            plan = scored.plan.model_copy(update={"selection": select_as(arm)})
            selection, _ = stages.select(self.storage, plan, self.corpus, scored.reference)
            return selection
        candidates = self.candidates
        among = candidates.is_clean if arm.text == "clean" else np.ones(len(candidates.kind), dtype=bool)
        rules: dict[str, Callable[[], Floats]] = {
            "random": lambda: np.random.Generator(np.random.PCG64(seed)).random(len(among)),
            CORPUS: lambda: self.score(ScoresOf()).scores.difference,
            DOMAIN: lambda: rank_within_domains(self.score(ScoresOf()).scores.difference, candidates.domain, among),
            "perplexity": lambda: -self.score(ScoresOf()).scores.teacher_nll,
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
        student = self.change_student(student, arm, seed)
        # Its own folder; no key, so that the plan of the run that it is a copy of stays what it is.
        changes: dict[str, Any] = {"name": f"{plan.name}-{arm.name}-{seed}", "key": "", "students": (student,), "trainings": {}}
        return plan.model_copy(update=changes), student.name

    def change_student(self, student: StudentConfig, arm: Arm, seed: int) -> StudentConfig:
        """The configured student as an arm has it."""
        # The published three quarters of a sequence stay, where a teacher writes on.
        prompt = {"prompt_tokens": max(1, self.config.corpus.sequence_length * 3 // 4)}
        changes: dict[str, Any] = {
            "training": student.training.model_copy(update={"seed": seed}),
            "method": arm.method,
            "flop_matched": arm.budget == "training",
            "generation": student.generation.model_copy(update=prompt),
        }
        if arm.student is not None:
            changes["architecture"] = arm.student
        if arm.vocabulary == "corpus":
            changes |= {"tokenizer": None, "eos_token": None}
        return student.model_copy(update=changes)

    def provide_text(self, arm: Arm, seed: int) -> tuple[SelectionManifest, RunPlan, str]:
        """Selects what a student is trained on, and makes it in the student's own tokens, with the held-out text.

        SeqKD's text is written once for all seeds, as writing costs as much as scoring.
        """
        selection = self.select(arm, 0 if arm.method == "seqkd" else seed)
        plan, name = self.plan_student(arm, seed)
        stages.derive(self.storage, plan, self.corpus, selection, name)
        if arm.budget == "all":
            plan = self._match(arm, plan, selection, name)
        return selection, plan, name

    def _match(self, arm: Arm, plan: RunPlan, selection: SelectionManifest, name: str) -> RunPlan:
        """The plan with as many steps as cost, all counted, what MiniPLM costs with as many as configured; its milestones as many too."""
        student, training = plan.find_student(name), plan.find_student(name).training
        if training.steps is None:
            raise ConfigError("students are trained by epochs; give training.steps, which arms of equal FLOPs are counted by")
        num_parameters = count_parameters(
            build_empty_model(student.architecture, self._count_vocabulary(student), plan.corpus.sequence_length + 1)
        )
        teacher = plan.require_teacher().num_parameters
        steps = match_steps(
            training.steps,
            training.batch_size * self._count_mean_tokens(plan, selection, name),
            num_parameters,
            count_scores(self.describe_scores(ScoresOf())),
            teacher if student.is_distilled else 0,
            2.0 * teacher * self._count_written(plan, selection, name),
        )
        changes: dict[str, Any] = {"steps": steps}
        for field in ("milestone_every_steps", "checkpoint_every_steps"):
            if (every := getattr(training, field)) is not None:
                changes[field] = max(1, every * steps // training.steps)
        matched = student.model_copy(update={"training": training.model_copy(update=changes)})
        return plan.model_copy(update={"students": (matched,), "trainings": {}})

    def _count_mean_tokens(self, plan: RunPlan, selection: SelectionManifest, name: str) -> float:
        """Tokens of a sequence that a student reads."""
        derived_ids = know_student(self.storage, plan, self.corpus, selection, name).derived_ids
        read = load_derived(self.storage, derived_ids[-1]) if derived_ids else None
        return selection.num_selected_tokens / selection.num_selected if read is None else read.num_tokens / read.num_sequences

    def _count_vocabulary(self, student: StudentConfig) -> int:
        own = load_own_tokenizer(student, self.config.corpus)
        return resolve_vocab_size(student.vocab_size, (self.corpus.tokenizer if own is None else own.entry).vocab_size)

    def _count_written(self, plan: RunPlan, selection: SelectionManifest, name: str) -> int:
        """The tokens that a teacher read and wrote before a student's training."""
        if not METHOD_FACTS[plan.find_student(name).method].has_written_text:
            return 0
        derived_ids = know_student(self.storage, plan, self.corpus, selection, name).derived_ids
        return load_derived(self.storage, derived_ids[0]).num_tokens

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
            "kept": None if arm.method == "seqkd" else self.describe_kept(selection),
            "teacher_parameters": plan.require_teacher().num_parameters,
            "tokens_along": record.num_tokens if plan.find_student(name).is_distilled else 0,
            "tokens_written": self._count_written(plan, selection, name),
        }

    def _count_epoch_tokens(self, plan: RunPlan, selection: SelectionManifest, name: str) -> int:
        """The tokens of one pass over what a student is trained on, in its own tokens."""
        derived_ids = know_student(self.storage, plan, self.corpus, selection, name).derived_ids
        return load_derived(self.storage, derived_ids[-1]).num_tokens if derived_ids else selection.num_selected_tokens

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
        return self.scoring.describe(of, self.candidates)


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
        if arm.needs_scores and not is_there(scores=arm.scores.name) and not is_there(arm=arm.name, seed=None):
            try:
                add(experiment.describe_scores(arm.scores))
            except ProxyError as error:  # told in the tables; the other arms are worth having without it
                add({"arm": arm.name, "seed": None, "corpus_id": experiment.corpus.corpus_id, "skipped": str(error)})
                print(f"{arm.name} is left out: {error}", flush=True)
    chosen = [arm for arm in chosen if not is_there(arm=arm.name, seed=None)]
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
    arms = [arm for arm in ARMS if rows_of(rows, arm.name)]
    print_tables(rows, arms)
    if given.plot:
        draw_gains(rows, arms, given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
