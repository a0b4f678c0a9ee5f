"""How much more or less each student loses than its baseline, sequence by sequence on the same held-out text."""

from __future__ import annotations

from miniplm.baselines import rank_baselines
from miniplm.run_record import RunRecord
from miniplm.sequence_losses import PairedDifference, SequenceLosses, find_losses, subtract_losses
from miniplm.storage import Storage

# The key of all domains together; no domain has an empty name.
ALL_DOMAINS = ""


def choose_baselines(record: RunRecord) -> dict[str, str]:
    """The evaluated student that each evaluated student is held against: `pretrain`, the most alike. Some have none."""
    evaluated = {name for name, student in record.students.items() if student.evaluation is not None}
    ranked = {name: [other for other in rank_baselines(record, name) if other in evaluated] for name in record.students}
    return {name: baselines[0] for name, baselines in ranked.items() if name in evaluated and baselines}


def measure_differences(storage: Storage, record: RunRecord) -> dict[str, dict[str, PairedDifference]]:
    """The paired differences of each student from its baseline by domain, `ALL_DOMAINS` first; only of those whose losses are kept."""
    kept: dict[str, SequenceLosses | None] = {}

    def read(name: str) -> SequenceLosses | None:
        if name not in kept:
            student = record.students[name]
            digest = None if student.evaluation is None else student.evaluation.losses_digest
            kept[name] = find_losses(storage, student.training_id, digest)
        return kept[name]

    found = {}
    for name, baseline_name in choose_baselines(record).items():
        losses, baseline = read(name), read(baseline_name)
        if losses is None or baseline is None or not losses.is_of_the_same_text(baseline):
            continue
        found[name] = {ALL_DOMAINS: subtract_losses(losses, baseline)} | {
            domain: subtract_losses(losses.of_domain(domain), baseline.of_domain(domain))
            for domain in sorted(set(losses.domain.tolist()))
        }
    return found
