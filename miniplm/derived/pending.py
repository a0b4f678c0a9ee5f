"""What is still to be derived before a student of a run can be trained and measured."""

from __future__ import annotations

from miniplm.artifacts import CorpusManifest, SelectionManifest
from miniplm.config import RunConfig
from miniplm.derived.needs import list_derived_jobs
from miniplm.derived.sets import DerivedJob
from miniplm.storage import Storage
from miniplm.student_plans import plan_heldout_conversion, plan_student
from miniplm.students import find_student
from miniplm.training.loop import find_training


def list_pending_jobs(
    storage: Storage, config: RunConfig, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> list[DerivedJob]:
    """The sets that a student needs, in the order in which they are to be made; of a student that is trained, or measured, none any more.

    A set among them may be made already; `check_shards` tells.
    """
    plan = plan_student(config, corpus, selection, student_name)
    jobs = list_derived_jobs(plan)
    if jobs and find_training(storage, plan.training_id) is not None:
        jobs = []
    if config.evaluation.heldout and (heldout := plan_heldout_conversion(config, corpus, student_name)) is not None:
        student = find_student(storage, config, corpus, selection, student_name)
        if student is None or student.evaluation is None:
            jobs.append(heldout)
    return jobs
