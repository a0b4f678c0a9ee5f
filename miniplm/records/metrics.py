"""What a finished student's training wrote down step by step."""

from __future__ import annotations

from miniplm.layout import student_folder
from miniplm.records.manifests import CheckpointMetrics
from miniplm.records.run import RunRecord
from miniplm.records.stored import parse_metrics
from miniplm.storage.root import Storage


def read_student_metrics(storage: Storage, record: RunRecord) -> dict[str, dict[int, CheckpointMetrics]]:
    """The metrics of each student of a run by step, ascending; students without any are left out.

    A resumed training may have written a step twice; the later row is the one that counts.
    """
    found = {}
    for name in record.students:
        path = f"{student_folder(record.run_name, name)}/metrics.jsonl"
        if not storage.exists(path):
            continue
        metrics = {row.step: row for row in parse_metrics(storage.read_bytes(path))}
        if metrics:
            found[name] = dict(sorted(metrics.items()))
    return found
