"""Students against their baseline: differences of held-out losses with standard errors, and what these rest on."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import Field

from miniplm.evaluation.accuracies import average_accuracy
from miniplm.evaluation.baselines import find_baselines, find_tokenizer
from miniplm.evaluation.losses import SequenceLosses, find_losses, subtract_losses
from miniplm.records.manifests import DomainLoss, Evaluation, Record
from miniplm.records.run import RunRecord
from miniplm.records.texts import MeasuredText
from miniplm.storage.root import Storage


class LossDifference(Record):
    """A student's held-out loss less its baseline's; below 0 is better. Standard errors are None where they are not known.

    Where both read the same sequences, it is `paired`: the error is that of the differences of each sequence. Else the
    two losses' errors are taken as independent, which overstates it; then nats a token are None, as with different
    tokenizers a token is not the same.
    """

    nats_per_token: float | None
    nats_standard_error: float | None
    bits_per_byte: float
    bits_standard_error: float | None
    paired: bool


class StudentComparison(Record):
    """An evaluated student beside its baseline (None: there is none, or it is one itself), overall and by domain."""

    baseline: str | None = None
    overall: LossDifference | None = None
    domains: dict[str, LossDifference] = Field(default_factory=dict)
    average_accuracy: float | None = None
    average_accuracy_standard_error: float | None = None


def compare_students(storage: Storage, record: RunRecord) -> dict[str, StudentComparison]:
    """Each evaluated student of a run against its baseline (`find_baselines`), with the average over its zero-shot tasks. All outputs show these."""
    evaluations = {name: student.evaluation for name, student in record.students.items() if student.evaluation is not None}
    losses = {
        name: find_losses(
            storage, record.students[name].training_id, evaluation.losses_digest, MeasuredText.of(evaluation).elsewhere
        )
        for name, evaluation in evaluations.items()
    }
    baselines = find_baselines(record)
    comparisons = {}
    for name, evaluation in evaluations.items():
        accuracy, error = average_accuracy(evaluation.tasks) if evaluation.tasks else (None, None)
        comparison = StudentComparison(average_accuracy=accuracy, average_accuracy_standard_error=error)
        baseline = baselines.get(name)
        if baseline is not None:
            same_tokens = find_tokenizer(record, name) == find_tokenizer(record, baseline)
            overall, domains = _compare(evaluation, losses[name], evaluations[baseline], losses[baseline], same_tokens)
            comparison = comparison.model_copy(update={"baseline": baseline, "overall": overall, "domains": domains})
        comparisons[name] = comparison
    return comparisons


def compare_in_nats(comparisons: Iterable[StudentComparison]) -> bool:
    """Whether all differences are known in nats a token; else they are told in bits a byte, which compare any tokens."""
    return all(
        difference.nats_per_token is not None
        for comparison in comparisons
        for difference in (comparison.overall, *comparison.domains.values())
        if difference is not None
    )


def _compare(
    evaluation: Evaluation,
    losses: SequenceLosses | None,
    baseline: Evaluation,
    baseline_losses: SequenceLosses | None,
    same_tokens: bool,
) -> tuple[LossDifference, dict[str, LossDifference]]:
    shared = [domain for domain in evaluation.domains if domain in baseline.domains]
    if same_tokens and losses is not None and baseline_losses is not None and losses.is_of_the_same_text(baseline_losses):
        return _subtract_pairs(losses, baseline_losses, baseline.overall), {
            domain: _subtract_pairs(losses.of_domain(domain), baseline_losses.of_domain(domain), baseline.domains[domain])
            for domain in shared
        }
    # Where the losses of sequences are not kept, only their numbers tell whether it was the same text in the same tokens.
    first, second = evaluation.overall, baseline.overall
    same_counts = (first.num_scored_tokens, first.num_sequences) == (second.num_scored_tokens, second.num_sequences)
    in_nats = same_tokens and same_counts and (losses is None or baseline_losses is None)
    return _subtract(first, second, in_nats), {
        domain: _subtract(evaluation.domains[domain], baseline.domains[domain], in_nats) for domain in shared
    }


def _subtract_pairs(losses: SequenceLosses, baseline_losses: SequenceLosses, baseline: DomainLoss) -> LossDifference:
    difference = subtract_losses(losses, baseline_losses)
    # The same text in the same tokens: between its nats a token and bits a byte lies one constant.
    bits_per_nat = baseline.bits_per_byte / baseline.nats_per_token if baseline.nats_per_token else 0.0
    error = difference.standard_error
    return LossDifference(
        nats_per_token=difference.nats_per_token,
        nats_standard_error=error,
        bits_per_byte=difference.nats_per_token * bits_per_nat,
        bits_standard_error=None if error is None else error * bits_per_nat,
        paired=True,
    )


def _subtract(loss: DomainLoss, baseline: DomainLoss, in_nats: bool) -> LossDifference:
    return LossDifference(
        nats_per_token=loss.nats_per_token - baseline.nats_per_token if in_nats else None,
        nats_standard_error=_add_errors(loss.nats_standard_error, baseline.nats_standard_error) if in_nats else None,
        bits_per_byte=loss.bits_per_byte - baseline.bits_per_byte,
        bits_standard_error=_add_errors(loss.bits_standard_error, baseline.bits_standard_error),
        paired=False,
    )


def _add_errors(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else math.hypot(first, second)
