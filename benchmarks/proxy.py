"""How well a proxy predicts difference scores, and what it saves, by share and scorer, beside the scores of both models.

    python -m benchmarks.proxy CONFIG --shares 0.05 0.1 0.2

CONFIG is of a run whose candidates both models have scored (`miniplm score CONFIG --model teacher`, then `reference`); shards that they have not are
left out. No model runs but the reference, for `head`. Sides, each with labels drawn `--draws` times, what they select and rank held against full scores
on the sequences that were not labelled:

    linear, head           the two scorers of the product
    n-grams alone, states alone   the same without the reference's NLL, so that the reference need not score the rest (`head`: makes no logits)
    reference alone        the reference's NLL itself, which needs no label

`gate` is the overlap that the product measures by the labels alone, `overlap` the one on the rest that it stands for.

Shapes: N sequences, D columns that are scaled, F columns in all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from benchmarks.records import append_rows, describe_place, format_table, make_parser, run_benchmark
from miniplm.config.files import load_config
from miniplm.config.selection import SelectionConfig
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.errors import ScoreJoinError
from miniplm.proxy.cost import count_flops
from miniplm.proxy.features import Scale, join_columns
from miniplm.proxy.labels import find_labelled, hash_ids
from miniplm.proxy.ngrams import count_ngrams
from miniplm.proxy.ridge import NUM_FOLDS, fit_ridge
from miniplm.records.manifests import ModelEntry
from miniplm.run.model_entries import require_reference, with_teacher
from miniplm.run.resolution import resolve
from miniplm.run.scoring_models import open_scorer
from miniplm.run.status import require_corpus
from miniplm.scoring.pooling import pool_states
from miniplm.scoring.shards import check_score_shard, parse_scores, read_scores
from miniplm.selection.agreement import compare_scores
from miniplm.selection.sample import Sample
from miniplm.storage.root import Storage

Values = NDArray[np.float64]
# The published pair (arXiv 2410.17215): what the shares would save there.
_PUBLISHED = (1_836_828_672, 104_000_000)


@dataclass(frozen=True)
class Candidates:
    """Sequences with both scores, (N,) each; NLLs in nats a scored token. `teacher_rate`: tokens a second at which the teacher scored them."""

    ids: NDArray[np.int64]
    domains: list[str]
    sequences: list[NDArray[Any]]
    teacher_nll: Values
    reference_nll: Values
    teacher: ModelEntry
    reference: ModelEntry
    teacher_rate: float
    reference_rate: float

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.sequences))


def main() -> int:
    parser = make_parser("proxy", __doc__)
    parser.add_argument("config", help="configuration of a run that is scored")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="changes a field of it")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--draws", type=int, default=5, help="how often labels are drawn, by seeds 0, 1, ...")
    parser.add_argument("--within", choices=["corpus", "domain"], default="corpus")
    return run_benchmark(parser, run)


def run(arguments: argparse.Namespace, scratch: Path) -> None:
    plan = resolve(load_config(arguments.config, arguments.set))
    storage = Storage(plan.storage)
    corpus = require_corpus(storage, plan)
    plan = with_teacher(storage, plan, corpus)
    reference = require_reference(storage, plan, corpus)
    found = read_candidates(storage, corpus, plan.require_teacher(), reference)
    print(
        f"{len(found.ids):,} candidates, {found.num_tokens:,} tokens; teacher {found.teacher.model_id} {found.teacher_rate:,.0f} tokens/s, "
        f"reference {found.reference.model_id} {found.reference_rate:,.0f} tokens/s",
        flush=True,
    )
    scorer = open_scorer(storage, reference, plan.scoring, corpus.sequence_length)
    ngrams, ngram_seconds = measure(lambda: count_ngrams(found.sequences))
    states, state_seconds = measure(lambda: pool_states(scorer, found.sequences, corpus.tokenizer.eos_token_id))
    nll = found.reference_nll[:, None]
    nothing = np.zeros((len(nll), 0))
    sides: dict[str, tuple[sp.csr_matrix | None, Values, float]] = {
        "linear": (ngrams, nll, ngram_seconds),
        "head": (None, np.concatenate([states, nll], axis=1), state_seconds),
        "n-grams alone": (ngrams, nothing, ngram_seconds),
        "states alone": (None, states, state_seconds),
    }
    place = describe_place(torch.device("cpu"))
    rows = []
    for ratio in arguments.ratios:
        for share in arguments.shares:
            for side, (counts, columns, seconds) in sides.items():
                draws = [
                    measure_draw(found, counts, columns, share, ratio, arguments.within, seed) for seed in range(arguments.draws)
                ]
                rows.append(summarise(found, side, share, ratio, seconds, draws) | place | {"within": arguments.within})
        rows.append(measure_reference(found, ratio, arguments.within) | place | {"within": arguments.within})
    print(show(rows))
    if arguments.json:
        append_rows(arguments.json, rows)


def read_candidates(storage: Storage, corpus: Any, teacher: ModelEntry, reference: ModelEntry) -> Candidates:
    """The candidates of those shards that both models have scored."""
    parts: dict[str, list[Any]] = {name: [] for name in ("ids", "domains", "sequences", "teacher", "reference")}
    seconds = {"teacher": 0.0, "reference": 0.0}
    for shard in corpus.split_shards("candidate"):
        states = {
            role: check_score_shard(storage, shard, entry.model_id)
            for role, entry in (("teacher", teacher), ("reference", reference))
        }
        if any(state.manifest is None for state in states.values()):
            continue
        table = read_shard(storage, shard, columns=["sequence_id", "domain", "token_ids"])
        parts["ids"].append(table["sequence_id"].to_numpy())
        parts["domains"] += table["domain"].to_pylist()
        parts["sequences"] += [sequence.copy() for sequence in read_token_ids(table)]
        for role, state in states.items():
            assert state.manifest is not None
            scores = parse_scores(read_scores(storage, shard, state.manifest)).sort_by("sequence_id")
            parts[role].append(scores["nll_sum"].to_numpy() / np.maximum(scores["num_scored_tokens"].to_numpy(), 1))
            seconds[role] += state.manifest.seconds
    if not parts["ids"]:
        raise ScoreJoinError(f"no candidate shard of corpus {corpus.corpus_id} is scored by both models yet")
    num_tokens = sum(map(len, parts["sequences"]))
    return Candidates(
        np.concatenate(parts["ids"]),
        parts["domains"],
        parts["sequences"],
        np.concatenate(parts["teacher"]),
        np.concatenate(parts["reference"]),
        teacher,
        reference,
        num_tokens / seconds["teacher"],
        num_tokens / seconds["reference"],
    )


def measure(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work gives, and its seconds."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def measure_draw(
    found: Candidates,
    ngrams: sp.csr_matrix | None,
    columns: Values,
    share: float,
    ratio: float,
    within: Literal["corpus", "domain"],
    seed: int,
) -> dict[str, float]:
    """One draw of labels, fitted from the features of all candidates (N, F) and columns to be scaled (N, D), and held against full scores."""
    truth = found.reference_nll - found.teacher_nll
    labelled = find_labelled(found.ids, share, seed)
    label, rest = np.flatnonzero(labelled), np.flatnonzero(~labelled)
    started = time.perf_counter()
    if columns.shape[1]:
        scale = Scale.of(columns[label])
        features = join_columns(ngrams, scale.apply(columns))
    else:
        assert ngrams is not None
        features = ngrams
    folds = (hash_ids(found.ids[label], seed + 1) * NUM_FOLDS).astype(np.int8)
    fitted = fit_ridge(features[label], truth[label], folds)
    seconds = time.perf_counter() - started
    predicted = np.asarray(features @ fitted.weights) + fitted.bias
    _, gate = compare(found, fitted.held_out, label, ratio, within)
    spearman, overlap = compare(found, predicted[rest], rest, ratio, within)
    return {"num_labels": len(label), "gate": gate, "overlap": overlap, "spearman": spearman, "fit_seconds": seconds}


def compare(
    found: Candidates, predicted: Values, rows: NDArray[np.int64], ratio: float, within: Literal["corpus", "domain"]
) -> tuple[float, float]:
    """Spearman and overlap of predicted scores (num_rows,) of some rows with full ones."""
    truth = (found.reference_nll - found.teacher_nll)[rows]
    domains = [found.domains[row] for row in rows]
    sample, no_teacher = Sample(found.ids[rows], domains, np.ones(len(rows), dtype=np.int64)), np.zeros(len(rows))
    agreement = compare_scores(sample, SelectionConfig(ratio=ratio, within=within), (no_teacher, truth), (no_teacher, predicted))
    return agreement.spearman, agreement.overlap


def measure_reference(found: Candidates, ratio: float, within: Literal["corpus", "domain"]) -> dict[str, Any]:
    """Selecting by the reference's NLL alone: the text that it finds hardest."""
    spearman, overlap = compare(found, found.reference_nll, np.arange(len(found.ids)), ratio, within)
    return {"side": "reference alone", "ratio": ratio, "overlap": overlap, "spearman": spearman}


def summarise(
    found: Candidates, side: str, share: float, ratio: float, feature_seconds: float, draws: list[dict[str, float]]
) -> dict[str, Any]:
    """Means over draws, with standard deviations, and what a corpus of this size costs and saves."""
    mean = {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}
    spread = {
        f"{name}_deviation": float(np.std([draw[name] for draw in draws], ddof=1)) for name in ("overlap", "spearman", "gate")
    }
    kind = "head" if side in ("head", "states alone") else "linear"
    rest = (1 - share) * found.num_tokens
    seconds_saved = rest / found.teacher_rate - feature_seconds - mean["fit_seconds"]
    full_seconds = found.num_tokens * (1 / found.teacher_rate + 1 / found.reference_rate)

    def save(num_teacher_parameters: int, num_reference_parameters: int) -> float:
        flops = count_flops(
            kind, found.num_tokens, round(share * found.num_tokens), num_teacher_parameters, num_reference_parameters
        )
        # Without its NLL the reference scores the labels only.
        unread = (1 - share) * flops.reference if side.endswith("alone") else 0.0
        return 1 - (flops.with_proxy - unread) / flops.without_proxy

    return {
        "side": side,
        "share": share,
        "ratio": ratio,
        "num_candidates": len(found.ids),
        "num_tokens": found.num_tokens,
        **mean,
        **spread,
        "predicted_tokens_per_second": found.num_tokens / feature_seconds,
        "teacher_tokens_per_second": found.teacher_rate,
        "seconds_saved": seconds_saved,
        "seconds_share_saved": seconds_saved / full_seconds,
        "flops_saved": save(found.teacher.num_parameters, found.reference.num_parameters),
        "flops_saved_published": save(*_PUBLISHED),
        "teacher": found.teacher.model_id,
        "reference": found.reference.model_id,
    }


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as a table for people."""
    header = (
        "side",
        "ratio",
        "share",
        "labels",
        "overlap",
        "gate",
        "Spearman",
        "tokens/s",
        "seconds saved",
        "FLOPs saved",
        "at 1.8B/104M",
    )

    def cells(row: dict[str, Any]) -> list[str]:
        if "share" not in row:
            return [row["side"], f"{row['ratio']:g}", "", "", f"{row['overlap']:.1%}", "", f"{row['spearman']:.3f}", "", "", "", ""]
        return [
            row["side"],
            f"{row['ratio']:g}",
            f"{row['share']:g}",
            f"{row['num_labels']:.0f}",
            f"{row['overlap']:.1%} ± {row['overlap_deviation']:.1%}",
            f"{row['gate']:.1%} ± {row['gate_deviation']:.1%}",
            f"{row['spearman']:.3f} ± {row['spearman_deviation']:.3f}",
            f"{row['predicted_tokens_per_second']:,.0f}",
            f"{row['seconds_saved']:,.0f} ({row['seconds_share_saved']:.0%})",
            f"{row['flops_saved']:.0%}",
            f"{row['flops_saved_published']:.0%}",
        ]

    return format_table(header, [cells(row) for row in rows])


if __name__ == "__main__":
    raise SystemExit(main())
