"""The plan of a configuration: found where it is kept and still holds, else made."""

from __future__ import annotations

from miniplm.config.run import RunConfig, config_as_dict
from miniplm.run.plan import RunPlan, find_plan, save_plan
from miniplm.run.plan_key import make_key
from miniplm.storage.root import Storage


def resolve(config: RunConfig, *, emulated: bool = False, checks: bool = True) -> RunPlan:
    """The plan of a configuration: the one that is kept, where it still holds, else made anew and kept.

    With `checks` everything that a run is given is seen to be usable; without, as for a look at a run, nothing is kept.
    `emulated` allows a dtype that the device has not, for a calibration.
    Raises what `check_inputs` raises, and where a given model or tokenizer is not there.
    """
    storage = Storage(config.storage)
    key, may_be_kept = make_key(config, emulated)
    plan = _plans.get(key) or find_plan(storage, config.name)
    if plan is not None and (plan.key == key or key in _plans):
        # How sequences are selected decides nothing of what was looked at.
        plan = plan.model_copy(
            update={"selection": config.selection, "config": config_as_dict(config), "text_id": None, "target_id": None}
        )
        if not checks:
            return plan.model_copy(update={"key": ""})  # what is learned of it is not kept either
        storage.check_writable()
        if config.selection.has_expressions:
            from miniplm.selection.steering import check_rule

            check_rule(config.selection)
        _plans[key] = plan
        return plan
    from miniplm.run.planning import make_plan

    is_kept = checks and may_be_kept and not emulated
    plan = make_plan(config, storage, key if is_kept else "", emulated, checks)
    if checks:
        _plans[key] = plan
    if is_kept:
        save_plan(storage, plan)
    return plan


# Those that this process has made or found, by their keys.
_plans: dict[str, RunPlan] = {}
