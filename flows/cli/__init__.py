"""The console script `miniplm`, above the flows."""

from flows.cli.app import main

__all__ = ["main"]
