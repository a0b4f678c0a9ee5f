"""The model that a training starts from: of fresh weights, or of those of a model that is trained further."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from miniplm.errors import ModelError, reading_users_file
from miniplm.models.architectures import build_model
from miniplm.models.opening import model_files, open_causal_model
from miniplm.storage.root import Storage
from miniplm.training.recipe import TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_start(storage: Storage, plan: TrainingPlan) -> PreTrainedModel:
    """The model of a plan in float32 on the CPU, in training mode, before its first step; a function of the plan only.

    Raises `ConfigError` as `build_model`, and `ModelError` where the weights to start from cannot be read or do not fit.
    """
    recipe, initial, seed = plan.recipe, plan.inputs.initial, plan.config.seed
    if initial is None:
        return build_model(plan.architecture, recipe.vocab_size, recipe.max_positions, seed, plan.trust_remote_code)
    # A model that is trained further is built as any other, so that it computes as others do; only its weights are not fresh.
    with model_files(storage, initial) as folder:
        model = build_model(str(folder), recipe.vocab_size, recipe.max_positions, seed, plan.trust_remote_code)
    # What it scores in is not what it is trained in.
    trained, _ = open_causal_model(storage, initial.model_copy(update={"dtype": "float32"}), torch.device("cpu"))
    with reading_users_file(f"model {initial.source}", "cannot be trained further", "check its config.json", ModelError):
        model.load_state_dict(trained.state_dict())
    return model
