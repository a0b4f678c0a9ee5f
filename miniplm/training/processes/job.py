"""A training as a file that another process starts it from: the plan as JSON, with no secret in it."""

from __future__ import annotations

import torch

from miniplm.config.run import TrainingConfig
from miniplm.errors import TrainingError
from miniplm.records.manifests import Record
from miniplm.storage.root import Storage
from miniplm.training.methods import MethodInputs
from miniplm.training.recipe import TrainingPlan, TrainingRecipe


class TrainingJob(Record):
    """All of a `TrainingPlan`, and in how many processes of how many threads it is done.

    Credentials of the storage root are not here: the processes find them in the environment, as this one does.
    """

    storage: str
    training_id: str
    recipe: TrainingRecipe
    architecture: str
    inputs: MethodInputs
    config: TrainingConfig
    device: str
    trust_remote_code: bool
    trust_tokenizer_code: bool
    num_processes: int
    num_threads: int

    def make_plan(self) -> TrainingPlan:
        """The plan. Raises `TrainingError` where it is not what it was when the job was made."""
        plan = TrainingPlan(
            recipe=self.recipe,
            architecture=self.architecture,
            inputs=self.inputs,
            config=self.config,
            device=torch.device(self.device),
            trust_remote_code=self.trust_remote_code,
            trust_tokenizer_code=self.trust_tokenizer_code,
        )
        if plan.training_id != self.training_id:
            raise TrainingError(
                f"training {self.training_id} was to be started, and its job describes {plan.training_id}: this is a fault of miniplm; "
                "execution.launcher=inline avoids it"
            )
        return plan


def make_job(storage: Storage, plan: TrainingPlan, num_processes: int) -> TrainingJob:
    """The job of a plan. The threads of this process are shared out among its processes."""
    return TrainingJob(
        storage=storage.root,
        training_id=plan.training_id,
        recipe=plan.recipe,
        architecture=plan.architecture,
        inputs=plan.inputs,
        config=plan.config,
        device=str(plan.device),
        trust_remote_code=plan.trust_remote_code,
        trust_tokenizer_code=plan.trust_tokenizer_code,
        num_processes=num_processes,
        num_threads=max(1, torch.get_num_threads() // num_processes),
    )
