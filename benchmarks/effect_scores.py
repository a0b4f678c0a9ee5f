"""What the difference scores of a run are made of: no model is run.

    python -m benchmarks.effect_scores deployments/configs/effect.yaml

What another rule or ratio keeps is `miniplm select`'s to say; only the rule without a reference, which the product has not, is held
against the default here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.records import format_table
from miniplm.config.files import load_config
from miniplm.errors import MiniplmError
from miniplm.records.manifests import CorpusManifest
from miniplm.run.references import require_reference
from miniplm.run.resolution import resolve
from miniplm.run.status import require_corpus
from miniplm.selection.agreement import correlate_ranks
from miniplm.selection.budgets import count_selected
from miniplm.selection.connection import connect
from miniplm.selection.join import candidate_scores
from miniplm.storage.root import Storage

RATIOS = (0.3, 0.5, 0.7)
Values = NDArray[np.float64]


def read_scores(storage: Storage, corpus: CorpusManifest, teacher_id: str, reference_id: str) -> pa.Table:
    """The joined scores of all candidates in the order of their ids; raises `ScoreJoinError` where some are missing or damaged."""
    with connect(storage) as connection:
        candidate_scores(connection, storage, corpus, teacher_id, reference_id)
        columns = "sequence_id, domain, num_tokens, teacher_nll, reference_nll, reference_nll - teacher_nll AS difference"
        return connection.sql(f"SELECT {columns} FROM candidate_scores ORDER BY sequence_id").to_arrow_table()


def keep_best(values: Values, ratio: float) -> NDArray[np.bool_]:
    """Marks the floor(ratio N) largest of values (num_sequences,); ties go to the earlier."""
    kept = np.zeros(len(values), dtype=bool)
    kept[np.argsort(-values, kind="stable")[: count_selected(len(values), ratio)]] = True
    return kept


def means_of_domains(values: Values, domain: NDArray[Any]) -> Values:
    """For each sequence the mean of its domain, (num_sequences,)."""
    _, codes = np.unique(domain, return_inverse=True)
    means: Values = (np.bincount(codes, values) / np.bincount(codes))[codes]
    return means


def share_between_domains(values: Values, domain: NDArray[Any]) -> float:
    """Share of the variance of values (num_sequences,) that the means of the domains explain (eta squared): 1 where domains explain all."""
    return float(means_of_domains(values, domain).var() / values.var()) if values.var() else 0.0


def describe_scores(scores: pa.Table) -> dict[str, Any]:
    """What the difference score goes with, over all candidates and within the domains (each less its domain's mean)."""
    domain = np.array(scores["domain"].to_pylist())
    names = {"teacher NLL": "teacher_nll", "reference NLL": "reference_nll", "length": "num_tokens"}
    plain = {name: scores[column].to_numpy().astype(np.float64) for name, column in names.items()}
    difference = scores["difference"].to_numpy()
    within = {name: values - means_of_domains(values, domain) for name, values in plain.items()}
    centred = difference - means_of_domains(difference, domain)
    kept, by_teacher = keep_best(difference, 0.5), keep_best(-plain["teacher NLL"], 0.5)
    return {
        "num_candidates": len(difference),
        "num_negative": int((difference < 0).sum()),
        "share_between_domains": share_between_domains(difference, domain),
        "rank_correlations": {name: correlate_ranks(difference, values) for name, values in plain.items()},
        "rank_correlations_within_domains": {name: correlate_ranks(centred, values) for name, values in within.items()},
        # What a filter without a reference would keep: the text that the teacher finds most likely.
        "overlap_at_half": {"teacher": float((by_teacher & kept).sum() / kept.sum())},
        "mean_length": {"kept": float(plain["length"][kept].mean()), "dropped": float(plain["length"][~kept].mean())},
    }


def tabulate_domains(scores: pa.Table) -> str:
    domain, difference = np.array(scores["domain"].to_pylist()), scores["difference"].to_numpy()
    kept = [keep_best(difference, ratio) for ratio in RATIOS]
    lines = []
    for name in np.unique(domain).tolist():
        rows = domain == name
        means = (scores[column].to_numpy()[rows].mean() for column in ("teacher_nll", "reference_nll", "difference"))
        shares = (f"{marks[rows].mean():.0%}" for marks in kept)
        lines.append([name, str(rows.sum()), *(f"{value:.3f}" for value in (*means, difference[rows].std())), *shares])
    header = [
        "domain",
        "sequences",
        "teacher NLL",
        "reference NLL",
        "difference",
        "sd within",
        *(f"kept at {ratio}" for ratio in RATIOS),
    ]
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
    print(json.dumps(describe_scores(scores), indent=2))
    if not given.json:
        print("\n" + tabulate_domains(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
