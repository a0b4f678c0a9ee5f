"""What to try where a student of the selection is no better than one of random text, by the numbers of the run itself."""

from __future__ import annotations

from miniplm.evaluation.comparison import StudentComparison
from miniplm.records.run import RunRecord
from miniplm.records.selections import SelectionManifest
from miniplm.records.truth import TruthSummary

# Kept shares of two domains that differ by more than that have changed the mix.
_UNEVEN = 1.5
# Tokens a parameter from which a small model has learned more than which words are common (Chinchilla's rule is 20).
_FEW_TOKENS = 5


def advise(
    record: RunRecord, selection: SelectionManifest | None, comparison: StudentComparison | None, truth: TruthSummary | None = None
) -> list[str]:
    """Sentences that each name a setting and the numbers that speak for it; none where the student is better, or cannot be compared."""
    if selection is None or comparison is None or comparison.overall is None or comparison.overall.bits_per_byte <= 0:
        return []
    told = (_advise_rule(selection, comparison), _advise_ratio(selection, truth), _advise_models(record, selection))
    return [sentence for sentence in told if sentence is not None]


def _advise_rule(selection: SelectionManifest, comparison: StudentComparison) -> str | None:
    if selection.within == "domain" or "mix" in selection.rule or len(selection.domains) < 2:
        return None
    shares = {name: counts.num_selected_tokens / max(counts.num_candidate_tokens, 1) for name, counts in selection.domains.items()}
    low, high = min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])
    if shares[high] < _UNEVEN * shares[low]:
        return None
    lost = [
        f"{name} {difference.bits_per_byte:+.3f}"
        for name, difference in sorted(comparison.domains.items())
        if difference.bits_per_byte > 0 and shares.get(name, 1.0) < selection.kept_share
    ]
    where = f"; the student is worse in domains that lost weight ({', '.join(lost)} bits a byte)" if lost else ""
    return (
        f"selection.within=domain keeps the mix of domains: here {shares[high]:.0%} of {high} were kept and {shares[low]:.0%} of {low}{where}. "
        "It costs no new scores"
    )


def _advise_ratio(selection: SelectionManifest, truth: TruthSummary | None) -> str | None:
    if truth is not None and truth.recall is not None and truth.precision is not None and truth.clean_share is not None:
        if truth.precision <= truth.clean_share < 1:  # where no labelled text is dirt, none can be told from it
            return (
                f"the score does not tell clean text from dirt here: {truth.precision:.0%} of what was kept is clean, of random text "
                f"{truth.clean_share:.0%} would be. Another teacher or reference may mend that"
            )
        better = [
            row
            for row in truth.ratios
            if row.precision is not None
            and row.recall is not None
            and truth.ratio < row.ratio < 1  # all of it is random text
            and row.precision >= truth.precision - 0.02
            and row.precision > truth.clean_share
        ]
        if better and better[-1].recall is not None and better[-1].precision is not None:
            row = better[-1]
            return (
                f"selection.ratio={row.ratio:g} would keep {row.recall:.0%} of the clean text instead of {truth.recall:.0%}, with precision "
                f"{row.precision:.0%} instead of {truth.precision:.0%}. It costs no new scores"
            )
    if selection.kept_share >= 0.9:
        return None
    noise = selection.num_negative / max(selection.num_candidates, 1)
    field = "lower selection.threshold" if "threshold" in selection.rule else "larger selection.ratio"
    field = "larger selection.tokens" if "tokens" in selection.rule else field
    return (
        f"a {field} throws less away: here {1 - selection.kept_share:.0%} of the candidates went, where the teacher does worse than the "
        f"reference on {noise:.0%}. It costs no new scores"
    )


def _advise_models(record: RunRecord, selection: SelectionManifest) -> str | None:
    candidates = sum(domain.num_candidates for domain in selection.domains.values())
    teacher = sum(domain.mean_teacher_nll * domain.num_candidates for domain in selection.domains.values()) / max(candidates, 1)
    reference = sum(domain.mean_reference_nll * domain.num_candidates for domain in selection.domains.values()) / max(candidates, 1)
    is_tuned = any(stage.name == "tune teacher" for stage in record.stages)
    if teacher >= reference and not is_tuned:
        return (
            f"a teacher that knows such text: this one finds it less likely than the reference does, by {teacher - reference:.1f} nats a token, and what "
            "it finds likeliest is no guide then. Another teacher scores all anew"
        )
    stage = next((stage for stage in record.stages if stage.name == "train reference"), None)
    if record.reference is None or stage is None or not record.reference.num_parameters:
        return None
    share = stage.num_units / record.reference.num_parameters
    if share >= _FEW_TOKENS:
        return None
    costs = (
        "More epochs in reference.training cost its training and its scores; a larger corpus.splits.reference makes another corpus, "
        "which both models score anew"
    )
    if is_tuned:
        # The teacher is that reference: what lies between them is what it was tuned on, not how much either knows.
        return (
            f"a reference that has learned more: this one was trained on {share:.2g} tokens a parameter, and the teacher, which was tuned from it, "
            f"knows little more than the target text. {costs}"
        )
    return (
        f"a reference that has learned more: this one was trained on {share:.2g} tokens a parameter and is {reference - teacher:.1f} nats a token above the "
        f"teacher, so the difference mostly tells how likely the teacher finds a text. {costs}"
    )
