"""The fidelity gate: what a dtype changes in the scores and in what is selected, measured against float32 before it is used.

Shapes: N sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from miniplm import layout
from miniplm.config.selection import SelectionConfig
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.errors import ConfigError, CorpusError, FidelityError
from miniplm.models.devices import describe_device
from miniplm.models.fp8 import FP8_DTYPES
from miniplm.models.throughput import Throughput
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.calibrations import Calibration, CalibrationScores
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.stored import find_record
from miniplm.scoring.engine import Scorer
from miniplm.selection.agreement import compare_scores
from miniplm.selection.sample import Sample, read_sample
from miniplm.storage.root import Storage
from miniplm.versions import list_versions

# Shards that sequences are drawn from: reading one costs more than scoring a few of its sequences.
_MOST_SHARDS = 8

OpenScorer = Callable[[ModelEntry], Scorer]


@dataclass(frozen=True)
class Fidelity:
    """How far scores in the chosen dtypes are from float32.

    Biases are means of the difference of NLLs, nats a token. `spearman` correlates the ranks of the difference
    scores; `overlap` is the share of the `num_selected` sequences that the rule selects by float32 scores which
    the chosen dtypes select too, `overlap_error` its standard error as a share of that many.
    """

    num_sequences: int
    num_selected: int
    teacher_bias: float
    reference_bias: float
    spearman: float
    overlap: float
    overlap_error: float

    def passes(self, min_overlap: float) -> bool:
        """Whether enough is selected by both; where too few sequences were measured to select any, nothing is known, and it does not."""
        return self.num_selected > 0 and self.overlap >= min_overlap


def measure_fidelity(storage: Storage, corpus: CorpusManifest, calibration: Calibration, rule: SelectionConfig) -> Fidelity:
    """What a calibration says of a selection by a rule: what the rule keeps of its sequences, as if they were all candidates, by both scores.

    Copies and contaminated text are not left out: which they are is looked for later. Raises as `read_sample` and `compare_scores`, and
    `ConfigError` for documents, of which a calibration has parts.
    """
    check_measurable(rule)
    counts = np.array(calibration.num_scored_tokens, dtype=np.int64)
    domains = calibration.domains or [""] * len(counts)
    sample = read_sample(storage, corpus, rule, Sample(np.array(calibration.sequence_ids, dtype=np.int64), domains, counts))
    teacher, reference = calibration.teacher, calibration.reference
    agreement = compare_scores(
        sample,
        rule,
        (np.array(teacher.float32_nll), np.array(reference.float32_nll)),
        (np.array(teacher.nll), np.array(reference.nll)),
    )
    overlap, num_selected = agreement.overlap, agreement.num_selected
    return Fidelity(
        num_sequences=len(counts),
        num_selected=num_selected,
        teacher_bias=_weighted_bias(teacher, counts),
        reference_bias=_weighted_bias(reference, counts),
        spearman=agreement.spearman,
        overlap=overlap,
        overlap_error=math.sqrt(overlap * (1 - overlap) / max(num_selected, 1)),
    )


def check_measurable(rule: SelectionConfig) -> None:
    """Raises `ConfigError` for what no calibration measures."""
    if rule.unit == "document":
        raise ConfigError(
            "selection.unit is document, and dtypes are compared by what they select of single sequences, which hold parts of documents: of this "
            "rule nothing can be measured. Score in bfloat16 or float32, which need no comparison, or rank sequences"
        )


def _weighted_bias(scores: CalibrationScores, counts: NDArray[np.int64]) -> float:
    """The mean difference of NLLs a scored token; counts (N,)."""
    return float(np.average(np.array(scores.nll) - np.array(scores.float32_nll), weights=counts))


def calibrate(
    storage: Storage,
    corpus: CorpusManifest,
    teacher: ModelEntry,
    reference: ModelEntry,
    num_sequences: int,
    open_scorer: OpenScorer,
    on_progress: ProgressCallback = ignore_progress,
    within: Literal["corpus", "domain"] = "corpus",
) -> Calibration:
    """Scores some candidates by both models, in their dtype and in float32, and keeps the result with the scores, for selections `within`.

    The sequences are drawn evenly from up to 8 shards, always the same ones. `open_scorer` gives the scorer of an
    entry; one model at a time is held. Raises `CorpusError` where there are too few candidates to compare.
    """
    table_ids, domains, sequences = _draw_sequences(storage, corpus, num_sequences)
    total = sum(len(sequence) for sequence in sequences)
    device = ""
    counts: tuple[int, ...] = ()

    def run(entry: ModelEntry, role: str) -> tuple[tuple[float, ...], float]:
        nonlocal device, counts
        scorer = open_scorer(entry)
        done = 0

        def on_tokens(num_tokens: int, throughput: Throughput) -> None:
            nonlocal done
            done += num_tokens
            on_progress(Progress(f"calibrate {role} {entry.dtype}", done, total, "tokens", throughput.describe()))

        scores = scorer.score(sequences, corpus.tokenizer.eos_token_id, on_tokens)
        device = describe_device(scorer.model.device)
        counts = tuple(scores.num_scored_tokens.tolist())
        means = scores.nll_sum / np.maximum(scores.num_scored_tokens, 1)
        if not np.isfinite(means).all():
            broken = [table_ids[row] for row in np.flatnonzero(~np.isfinite(means))]
            raise FidelityError(
                f"{role} {entry.model_id} gives NLLs that are not finite in {entry.dtype} (sequence ids {broken[:10]})"
            )
        return tuple(means.tolist()), scores.throughput.tokens_per_second

    def compare(entry: ModelEntry, role: str) -> CalibrationScores:
        exact, exact_rate = run(entry.model_copy(update={"dtype": "float32"}), role)
        nll, rate = (exact, exact_rate) if entry.dtype == "float32" else run(entry, role)
        return CalibrationScores(
            model_id=entry.model_id,
            dtype=entry.dtype,
            nll=nll,
            float32_nll=exact,
            tokens_per_second=rate,
            float32_tokens_per_second=exact_rate,
        )

    calibration = Calibration(
        corpus_id=corpus.corpus_id,
        within=within,
        sequence_ids=tuple(table_ids),
        domains=tuple(domains),
        teacher=compare(teacher, "teacher"),
        reference=compare(reference, "reference"),
        num_scored_tokens=counts,
        device=device,
        versions=list_versions(),
    )
    storage.write_json(layout.calibration(corpus.corpus_id, teacher.model_id, reference.model_id, within), calibration.as_json())
    return calibration


def find_calibration(storage: Storage, corpus_id: str, teacher_id: str, reference_id: str, within: str) -> Calibration | None:
    """The calibration of two models on a corpus for selections `within`; None where there is none, or a damaged one."""
    calibration = find_record(storage, layout.calibration(corpus_id, teacher_id, reference_id, within), Calibration)
    return calibration if calibration is not None and calibration.within == within else None


def needs_calibration(*dtypes: str) -> bool:
    """Whether one of the dtypes may score only once it has been measured: fp8, with the head or without."""
    return any(dtype in FP8_DTYPES for dtype in dtypes)


def _draw_sequences(
    storage: Storage, corpus: CorpusManifest, num_sequences: int
) -> tuple[list[int], list[str], list[np.ndarray[Any, Any]]]:
    """Ids, domains and token ids (num_tokens,) of sequences that lie evenly over the candidates; always the same ones."""
    shards = corpus.split_shards("candidate")
    num_candidates = sum(shard.num_sequences for shard in shards)
    if num_candidates < 2:
        raise CorpusError(f"corpus {corpus.corpus_id} has {num_candidates} candidate sequences; a calibration needs at least 2")
    # Spread over the whole corpus, whose sources follow each other: the first shards may be of one domain alone.
    step = -(-len(shards) // _MOST_SHARDS)
    chosen = shards[::step]
    in_chosen = sum(shard.num_sequences for shard in chosen)
    wanted = min(num_sequences, in_chosen)
    # Evenly spaced places in the chosen shards laid end to end.
    places = np.unique(((np.arange(wanted) + 0.5) * in_chosen / wanted).astype(np.int64))
    sequence_ids: list[int] = []
    domains: list[str] = []
    sequences: list[np.ndarray[Any, Any]] = []
    first = 0
    for shard in chosen:
        rows = places[(places >= first) & (places < first + shard.num_sequences)] - first
        first += shard.num_sequences
        if len(rows):
            table = read_shard(storage, shard, columns=["sequence_id", "domain", "token_ids"]).take(rows)
            sequence_ids += table["sequence_id"].to_pylist()
            domains += table["domain"].to_pylist()
            sequences += read_token_ids(table)
    return sequence_ids, domains, sequences
