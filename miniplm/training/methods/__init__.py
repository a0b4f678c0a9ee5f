"""Training methods by the name that a configuration gives them. A new one is a file here and a line below."""

from __future__ import annotations

from miniplm.training.methods.method import MethodInputs, TrainingMethod
from miniplm.training.methods.miniplm import MiniplmMethod
from miniplm.training.methods.pretrain import PretrainMethod
from miniplm.training.methods.reference import ReferenceMethod
from miniplm.training.methods.seqkd import SeqkdMethod
from miniplm.training.methods.target import TargetMethod
from miniplm.training.methods.vanilla_kd import VanillaKdMethod

METHODS: dict[str, TrainingMethod] = {
    "miniplm": MiniplmMethod(),
    "miniplm+vanilla-kd": VanillaKdMethod("miniplm+vanilla-kd", MiniplmMethod()),
    "pretrain": PretrainMethod(),
    "reference": ReferenceMethod(),
    "seqkd": SeqkdMethod(),
    "target": TargetMethod(),
    "vanilla-kd": VanillaKdMethod("vanilla-kd", PretrainMethod()),
}

__all__ = ["METHODS", "MethodInputs", "TrainingMethod"]
