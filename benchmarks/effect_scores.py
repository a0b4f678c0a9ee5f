"""What the difference scores of a run are made of, and selections by other rules from the same scores: no model is run.

    python -m benchmarks.effect_scores deployments/configs/effect.yaml                          # tables
    python -m benchmarks.effect_scores deployments/configs/effect.yaml --publish stratified     # a selection: the best within each domain

A published selection has an id of its own (`stratified-...`). `--train STUDENT` trains and evaluates that student of the configuration on it, under
the run's name with the rule's name behind it, where `benchmarks.effect` finds it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.records import format_table
from miniplm import layout
from miniplm.artifacts import CorpusManifest, DomainSelection, SelectionManifest, SelectionShardEntry
from miniplm.config_files import load_config
from miniplm.errors import MiniplmError
from miniplm.references import require_reference
from miniplm.run_plan import RunPlan, resolve
from miniplm.run_status import require_corpus
from miniplm.selection.join import candidate_scores, check_scores, connect
from miniplm.selection.ranking import QUANTILES, SELECTION_SCHEMA, count_selected
from miniplm.storage import Storage, digest_content, digest_file

RATIOS = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Scores:
    """All candidates of a run, one element a sequence in the order of their ids; NLLs and `difference` in nats a scored token."""

    sequence_id: NDArray[np.int64]
    domain: NDArray[np.object_]
    num_tokens: NDArray[np.int64]
    num_scored_tokens: NDArray[np.int64]
    teacher_nll: NDArray[np.float64]
    reference_nll: NDArray[np.float64]

    @property
    def difference(self) -> NDArray[np.float64]:
        return self.reference_nll - self.teacher_nll

    @property
    def domains(self) -> list[str]:
        return sorted(set(self.domain.tolist()))


def read_scores(storage: Storage, corpus: CorpusManifest, teacher_id: str, reference_id: str) -> Scores:
    """The joined scores of all candidates; raises `ScoreJoinError` where some are missing or damaged."""
    check_scores(storage, corpus, teacher_id, reference_id)
    with connect(storage) as connection:
        candidate_scores(connection, storage, corpus, teacher_id, reference_id)
        table = connection.sql("SELECT * FROM candidate_scores ORDER BY sequence_id").to_arrow_table()
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return Scores(
        columns["sequence_id"],
        np.array(table["domain"].to_pylist(), dtype=object),
        columns["num_tokens"],
        columns["num_scored_tokens"],
        columns["teacher_nll"],
        columns["reference_nll"],
    )


def keep_best(values: NDArray[np.float64], ratio: float) -> NDArray[np.bool_]:
    """Marks the floor(ratio N) largest; ties go to the earlier."""
    kept = np.zeros(len(values), dtype=bool)
    kept[np.argsort(-values, kind="stable")[: count_selected(len(values), ratio)]] = True
    return kept


def keep_best_by_domain(scores: Scores, ratio: float) -> NDArray[np.bool_]:
    """Marks the best share of each domain by itself: the mix of domains stays, what changes is what is taken within each."""
    kept = np.zeros(len(scores.sequence_id), dtype=bool)
    for domain in scores.domains:
        rows = np.flatnonzero(scores.domain == domain)
        kept[rows[keep_best(scores.difference[rows], ratio)]] = True
    return kept


RULES: dict[str, Callable[[Scores, float], NDArray[np.bool_]]] = {
    "mean": lambda scores, ratio: keep_best(scores.difference, ratio),
    "sum": lambda scores, ratio: keep_best(scores.difference * scores.num_scored_tokens, ratio),
    "stratified": keep_best_by_domain,
    # What a filter without a reference would do: the text that the teacher finds most likely.
    "teacher": lambda scores, ratio: keep_best(-scores.teacher_nll, ratio),
}


def share_between_domains(values: NDArray[np.float64], domain: NDArray[np.object_]) -> float:
    """Share of the variance that the means of the domains explain (eta squared): 1 for a score that only tells domains apart."""
    total = float(((values - values.mean()) ** 2).sum())
    between = sum(
        float((domain == name).sum()) * (values[domain == name].mean() - values.mean()) ** 2 for name in set(domain.tolist())
    )
    return float(between / total) if total else 0.0


def correlate_ranks(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's correlation; ties in the order of the rows."""
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def describe_scores(scores: Scores) -> dict[str, Any]:
    """What the difference score goes with, over all candidates and within the domains (each less its domain's mean)."""
    within = {
        name: values - np.array([values[scores.domain == domain].mean() for domain in scores.domain])
        for name, values in (
            ("difference", scores.difference),
            ("teacher NLL", scores.teacher_nll),
            ("reference NLL", scores.reference_nll),
            ("length", scores.num_tokens.astype(np.float64)),
        )
    }
    plain = {
        "teacher NLL": scores.teacher_nll,
        "reference NLL": scores.reference_nll,
        "length": scores.num_tokens.astype(np.float64),
    }
    default = RULES["mean"](scores, 0.5)
    return {
        "num_candidates": len(scores.sequence_id),
        "num_negative": int((scores.difference < 0).sum()),
        "share_between_domains": share_between_domains(scores.difference, scores.domain),
        "rank_correlations": {name: correlate_ranks(scores.difference, values) for name, values in plain.items()},
        "rank_correlations_within_domains": {name: correlate_ranks(within["difference"], within[name]) for name in plain},
        "overlap_at_half": {
            name: float((rule(scores, 0.5) & default).sum() / default.sum()) for name, rule in RULES.items() if name != "mean"
        },
        "mean_length": {"kept": float(scores.num_tokens[default].mean()), "dropped": float(scores.num_tokens[~default].mean())},
    }


def tabulate_domains(scores: Scores) -> str:
    kept = {ratio: RULES["mean"](scores, ratio) for ratio in RATIOS}
    by_sum = RULES["sum"](scores, 0.5)
    header = [
        "domain",
        "sequences",
        "teacher NLL",
        "reference NLL",
        "difference",
        "sd within",
        *(f"kept at {ratio}" for ratio in RATIOS),
        "by sum",
    ]
    lines = []
    for domain in scores.domains:
        rows = scores.domain == domain
        numbers = [values[rows] for values in (scores.teacher_nll, scores.reference_nll, scores.difference)]
        lines.append(
            [
                domain,
                str(int(rows.sum())),
                *(f"{values.mean():.3f}" for values in numbers),
                f"{numbers[2].std():.3f}",
                *(f"{marks[rows].mean():.0%}" for marks in (*kept.values(), by_sum)),
            ]
        )
    return format_table(header, lines)


def publish_selection(
    storage: Storage, corpus: CorpusManifest, teacher_id: str, reference_id: str, scores: Scores, rule: str, ratio: float
) -> SelectionManifest:
    """Publishes what a rule keeps as a selection that students can be trained on, its manifest last."""
    kept = RULES[rule](scores, ratio)
    selection_id = f"{rule}-{ratio:g}-{digest_content([corpus.corpus_id, teacher_id, reference_id, scores.sequence_id[kept].tolist()], length=12)}"
    entries = []
    for shard in corpus.split_shards("candidate"):
        rows = np.flatnonzero(
            kept
            & (scores.sequence_id >= shard.first_sequence_id)
            & (scores.sequence_id < shard.first_sequence_id + shard.num_sequences)
        )
        table = pa.table(
            [scores.sequence_id[rows], scores.teacher_nll[rows], scores.reference_nll[rows], scores.difference[rows]],
            schema=SELECTION_SCHEMA,
        )
        with storage.publish(layout.selection_shard(selection_id, shard.shard_index)) as path:
            pq.write_table(table, path, compression="zstd")
            digest, num_bytes = digest_file(path), path.stat().st_size
        entries.append(
            SelectionShardEntry(
                shard_index=shard.shard_index,
                corpus_id=shard.corpus_id,
                digest=digest,
                num_bytes=num_bytes,
                num_sequences=len(rows),
                num_tokens=int(scores.num_tokens[rows].sum()),
            )
        )
    manifest = SelectionManifest(
        selection_id=selection_id,
        corpus_id=corpus.corpus_id,
        teacher_id=teacher_id,
        reference_id=reference_id,
        ratio=ratio,
        score="mean",
        num_candidates=len(kept),
        num_selected=int(kept.sum()),
        num_selected_tokens=int(scores.num_tokens[kept].sum()),
        num_negative=int((scores.difference < 0).sum()),
        threshold=None,  # a rule of its own has none that holds over all domains
        domains={domain: _count_domain(scores, kept, domain) for domain in scores.domains},
        shards=tuple(entries),
    )
    storage.write_json(layout.selection_manifest(selection_id), manifest.as_json())
    return manifest


def _count_domain(scores: Scores, kept: NDArray[np.bool_], domain: str) -> DomainSelection:
    rows = scores.domain == domain
    return DomainSelection(
        num_candidates=int(rows.sum()),
        num_selected=int((rows & kept).sum()),
        num_candidate_tokens=int(scores.num_tokens[rows].sum()),
        num_selected_tokens=int(scores.num_tokens[rows & kept].sum()),
        mean_teacher_nll=round(float(scores.teacher_nll[rows].mean()), 9),
        mean_reference_nll=round(float(scores.reference_nll[rows].mean()), 9),
        difference_score_quantiles=tuple(np.quantile(scores.difference[rows], QUANTILES).tolist()),
    )


def train_on(storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, rule: str, student: str) -> str:
    """Trains and evaluates a student of the configuration on a selection, as student `NAME-RULE` of the run; returns a line about it."""
    from miniplm.students import evaluate_student, train_student

    wanted = next(item for item in plan.students if item.name == student)
    renamed = wanted.model_copy(update={"name": f"{student}-{rule}"})
    plan = plan.model_copy(update={"key": "", "trainings": {}, "students": (renamed,)})
    record, _ = train_student(storage, plan, corpus, selection, renamed.name)
    record = evaluate_student(storage, plan, corpus, renamed.name, record)
    assert record.evaluation is not None
    return f"{plan.name} {renamed.name}: {record.num_tokens:,} tokens, held-out loss {record.evaluation.overall.nats_per_token:.4f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effect_scores", description=__doc__.partition("\n")[0])
    parser.add_argument("config", help="the run's configuration")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as `miniplm run` takes it; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.add_argument(
        "--publish", choices=sorted(RULES), help="publish the selection of another rule, at the configuration's ratio"
    )
    parser.add_argument("--train", metavar="STUDENT", help="with --publish: train and evaluate this student on it")
    given = parser.parse_args(arguments)
    if given.train and not given.publish:
        parser.error("--train needs --publish RULE: what the student is trained on")
    try:
        plan = resolve(load_config(given.config, given.set))
        storage = Storage(plan.storage)
        corpus = require_corpus(storage, plan)
        teacher, reference = plan.require_teacher(), require_reference(storage, plan, corpus)
        scores = read_scores(storage, corpus, teacher.model_id, reference.model_id)
    except MiniplmError as error:
        print(f"effect_scores: {error}", file=sys.stderr)
        return 2
    if given.publish:
        ratio = plan.selection.ratio
        selection = publish_selection(storage, corpus, teacher.model_id, reference.model_id, scores, given.publish, ratio)
        print(f"{selection.selection_id}: {selection.num_selected:,} sequences, {selection.num_selected_tokens:,} tokens")
        if given.train:
            print(train_on(storage, plan, corpus, selection, given.publish, given.train))
        return 0
    facts = describe_scores(scores)
    print(json.dumps(facts, indent=2))
    if not given.json:
        print("\n" + tabulate_domains(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
