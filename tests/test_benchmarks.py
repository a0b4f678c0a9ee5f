"""The benchmarks start, and tell how they are used; what they measure is not for a test."""

import runpy
import sys

import pytest


@pytest.mark.parametrize("name", ["training", "scoring", "scoring_engines", "orchestration"])
def test_help_teaches(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert not left.value.code
    assert "--json" in capsys.readouterr().out
