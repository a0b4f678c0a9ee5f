"""Makes the plan of a run: looks at every model and tokenizer that its configuration names, each once."""

from __future__ import annotations

from miniplm.config.run import RunConfig, config_as_dict
from miniplm.run.checks import check_inputs
from miniplm.run.pinning import WorkerDescription, needs_worker, pin_dtypes, pin_to, pin_to_machine
from miniplm.run.plan import RunPlan, save_plan
from miniplm.run.plan_key import make_key
from miniplm.run.scoring_models import identify_reference, identify_teacher
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer


def make_plan(config: RunConfig, storage: Storage, key: str = "", emulated: bool = False, checks: bool = True) -> RunPlan:
    """The plan of a configuration; with `checks` all that it names is seen to be usable. Raises what `check_inputs` raises."""
    if checks:
        tokenizer = check_inputs(config, emulated)
    else:
        tokenizer = load_tokenizer(config.corpus.tokenizer, config.corpus.eos_token, config.corpus.trust_remote_code)
    if config.is_on_work_pool:
        is_known = config.scoring.device != "auto" and not needs_worker(config)
        pinned = pin_dtypes(config, config.scoring.device.split(":")[0]) if is_known else config
    else:
        pinned = pin_to_machine(storage, config, keep=checks)
    plan = RunPlan.of(pinned, key, config=config_as_dict(config), tokenizer=tokenizer.identity)
    return identify_scorers(plan, storage, emulated)


def identify_scorers(plan: RunPlan, storage: Storage, emulated: bool = False) -> RunPlan:
    """The plan with the entries of the models that it is given, in their dtypes."""
    entries = {
        "teacher_entry": identify_teacher(plan, storage, emulated) if plan.teacher.model is not None else None,
        "reference_entry": identify_reference(plan, storage, emulated) if plan.reference.model is not None else None,
    }
    return plan.model_copy(update=entries)


def pin_plan(storage: Storage, plan: RunPlan, worker: WorkerDescription) -> RunPlan:
    """The plan with its dtypes as the workers resolve them, of whom one described itself; no other field is looked at again."""
    pinned = pin_to(plan, worker)
    sections = {name: getattr(pinned, name) for name in RunConfig.model_fields}
    config = RunConfig.model_construct(**sections)
    key, may_be_kept = make_key(config)
    # What was named with other dtypes has other ids.
    changes = {"key": key if may_be_kept else "", "trainings": {}, "config": config_as_dict(config)}
    plan = identify_scorers(pinned.model_copy(update=changes), storage)
    save_plan(storage, plan)
    return plan
