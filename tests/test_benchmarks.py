"""The benchmarks start, and tell how they are used; what they measure is not for a test."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["training", "scoring", "scoring_fidelity", "orchestration"])
def test_help_teaches(name):
    result = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--help"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--json" in result.stdout
