"""What is still to be derived before a student of a run can be trained and measured."""

from __future__ import annotations

from miniplm.derived.sets import DerivedJob
from miniplm.records.manifests import CorpusManifest, SelectionManifest
from miniplm.run.plan import RunPlan
from miniplm.run.student_records import list_needed_sets
from miniplm.run.training_plans import list_text_conversions, plan_student
from miniplm.storage.root import Storage
from miniplm.training.needs import list_derived_jobs


def list_pending_jobs(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> list[DerivedJob]:
    """The sets that a student needs, in the order in which they are to be made; of a student that is trained, or measured, none any more.

    A set among them may be made already; `check_shards` tells.
    """
    needed = list_needed_sets(storage, plan, corpus, selection, student_name)
    if not needed:
        return []
    jobs = list_derived_jobs(plan_student(plan, corpus, selection, student_name))
    return [job for job in [*jobs, *list_text_conversions(plan, corpus, student_name)] if job.derived_id in needed]
