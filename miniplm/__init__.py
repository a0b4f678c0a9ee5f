"""MiniPLM: corpus refinement for pre-training small language models (arXiv 2410.17215)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`miniplm.score`, loaded when it is asked for: it needs torch, and nothing else here does."""
    if name == "score":
        return import_module("miniplm.scoring.texts").score
    raise AttributeError(f"module 'miniplm' has no attribute {name!r}")
