"""A grid of selections tried for a run: kept beside its record for the report, and nothing is made of it."""

from __future__ import annotations

from miniplm import layout
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.run import RunRecord
from miniplm.records.stored import find_record
from miniplm.records.what_if import WhatIf
from miniplm.run.overlap import plan_left_out
from miniplm.run.plan import RunPlan
from miniplm.run.proxies import find_scorer_ids
from miniplm.selection.what_if import try_selections
from miniplm.storage.root import Storage


def try_grid(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    reference: ModelEntry,
    grid: str,
    on_progress: ProgressCallback = ignore_progress,
) -> WhatIf:
    """What each selection of a grid would keep of the run's candidates. Raises as `try_selections`."""
    what_if = try_selections(
        storage,
        corpus,
        *find_scorer_ids(storage, plan, corpus, reference),
        plan.selection,
        grid,
        on_progress,
        lambda config: plan_left_out(storage, plan, corpus, reference, config, on_progress),
    )
    storage.write_json(layout.run_what_if(plan.name), what_if.as_json())
    return what_if


def find_what_if(storage: Storage, record: RunRecord) -> WhatIf | None:
    """The grid that was tried last for a run; None where none was, or the run has another selection, corpus or scores since."""
    found = find_record(storage, layout.run_what_if(record.run_name), WhatIf)
    return found if found is not None and found.selection_id == record.selection_id else None
