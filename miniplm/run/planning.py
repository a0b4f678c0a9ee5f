"""Makes the plan of a run: looks at every model and tokenizer that its configuration names, each once."""

from __future__ import annotations

from collections.abc import Mapping

from miniplm.config.run import RunConfig, config_as_dict
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.identity import identify_model
from miniplm.models.locations import locate_model
from miniplm.models.skeleton import Skeleton
from miniplm.records.manifests import ModelEntry
from miniplm.run.checks import check_inputs
from miniplm.run.pinning import pin_run
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer


def make_plan(config: RunConfig, storage: Storage, key: str = "", emulated: bool = False, checks: bool = True) -> RunPlan:
    """The plan of a configuration; with `checks` all that it names is seen to be usable. Raises what `check_inputs` raises."""
    skeletons: dict[str, Skeleton] = {}
    if checks:
        tokenizer, skeletons = check_inputs(config, storage, emulated)
    else:
        tokenizer = load_tokenizer(config.corpus.tokenizer, config.corpus.eos_token, config.corpus.trust_remote_code)
    pinned = pin_run(storage, config, keep=checks)
    plan = RunPlan.of(pinned, key, config=config_as_dict(config), tokenizer=tokenizer.identity)
    return identify_scorers(plan, storage, emulated, skeletons)


def identify_scorers(
    plan: RunPlan, storage: Storage, emulated: bool = False, skeletons: Mapping[str, Skeleton] | None = None
) -> RunPlan:
    """The plan with the entries of the models that it is given, in their dtypes; `skeletons` are what was read of them already, by role.

    `emulated` allows a dtype that the device has not, for a calibration. Raises `ModelError` where a model's files are not there or not whole.
    """
    entries: dict[str, ModelEntry | None] = {}
    for role, given in (("teacher", plan.teacher), ("reference", plan.reference)):
        entries[f"{role}_entry"] = None
        if given.model is not None:
            # Whether the workers of a pool have fp8 is for them to say, when they load the model.
            dtype = resolve_dtype(given.dtype, resolve_device(plan.planning_device), emulated or plan.is_on_work_pool)
            folder, skeleton = locate_model(given.model, given.revision), (skeletons or {}).get(role)
            entries[f"{role}_entry"] = identify_model(
                folder, given.model, dtype, given.revision, given.trust_remote_code, plan.scoring.attention, storage, skeleton
            )
    return plan.model_copy(update=entries)
