"""What the difference scores of a run are made of, and what other rules would keep by the same scores: no model is run.

    python -m benchmarks.effect_scores deployments/configs/effect.yaml

Two of the rules can be trained on: `selection.score: sum`, and `selection.within: domain`, which is "stratified" here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.records import format_table
from miniplm.config.files import load_config
from miniplm.errors import MiniplmError
from miniplm.records.manifests import CorpusManifest
from miniplm.run.references import require_reference
from miniplm.run.resolution import resolve
from miniplm.run.status import require_corpus
from miniplm.selection.fidelity import correlate_ranks
from miniplm.selection.join import candidate_scores, check_scores, connect
from miniplm.selection.ranking import count_selected
from miniplm.storage.root import Storage

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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effect_scores", description=__doc__.partition("\n")[0])
    parser.add_argument("config", help="the run's configuration")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as `miniplm run` takes it; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    given = parser.parse_args(arguments)
    try:
        plan = resolve(load_config(given.config, given.set))
        storage = Storage(plan.storage)
        corpus = require_corpus(storage, plan)
        teacher, reference = plan.require_teacher(), require_reference(storage, plan, corpus)
        scores = read_scores(storage, corpus, teacher.model_id, reference.model_id)
    except MiniplmError as error:
        print(f"effect_scores: {error}", file=sys.stderr)
        return 2
    facts = describe_scores(scores)
    print(json.dumps(facts, indent=2))
    if not given.json:
        print("\n" + tabulate_domains(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
