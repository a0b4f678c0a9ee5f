"""MiniPLM: corpus refinement for pre-training small language models (arXiv 2410.17215)."""

__version__ = "0.1.0"
