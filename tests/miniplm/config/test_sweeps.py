"""A sweep's combinations, their names, and what is refused before anything starts."""

from __future__ import annotations

import pytest

from miniplm.config.sweeps import expand_sweep, split_values
from miniplm.errors import ConfigError

CONTENT = {
    "name": "base",
    "storage": "/data",
    "corpus": {"sources": [{"path": "/c/*.jsonl", "domain_name": "all"}], "tokenizer": "t"},
    "teacher": {"model": "m"},
    "reference": {"architecture": "qwen-tiny", "training": {"steps": 5}},
    "students": [{"name": "one", "architecture": "qwen-tiny", "method": "miniplm", "training": {"steps": 5}}],
}


def test_each_combination_is_a_run_with_a_name_of_its_values() -> None:
    settings = ["selection.ratio=0.3,0.5", "teacher.model=/models/a,/models/b", "students.0.training.steps=7"]
    runs = expand_sweep(CONTENT, settings, "base.yaml")
    assert [(run.config.selection.ratio, run.config.teacher.model) for run in runs] == [
        (0.3, "/models/a"),
        (0.3, "/models/b"),
        (0.5, "/models/a"),
        (0.5, "/models/b"),
    ]
    assert {run.config.students[0].training.steps for run in runs} == {7}
    names = [run.config.name for run in runs]
    assert len(set(names)) == 4
    assert names[0].startswith("base-ratio-0.3-model-a-")
    assert names == [run.config.name for run in expand_sweep(CONTENT, settings, "base.yaml")]
    assert [run.config.name for run in expand_sweep(CONTENT, ["selection.ratio=0.3,0.5"], "")] == [
        "base-ratio-0.3",
        "base-ratio-0.5",
    ]
    assert CONTENT["name"] == "base"
    assert "selection" not in CONTENT


def test_values_whose_names_are_alike_make_runs_of_different_names() -> None:
    runs = expand_sweep(CONTENT, ["teacher.model=/x/model,/y/model,x model,'x.model'"], "")
    assert len({run.config.name for run in runs}) == 4


def test_commas_in_quotes_and_brackets_belong_to_the_value() -> None:
    assert split_values("'a,b', [1, 2],{x: [3, 4]},c") == ["'a,b'", "[1, 2]", "{x: [3, 4]}", "c"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "nothing to sweep"),
        (["selection.ratio=0.3"], "nothing to sweep"),
        (["selection.ratio"], "write FIELD=VALUE"),
        (["selection.ratio=0.3,0.3"], "0.3 stands there twice"),
        (["selection.ratio=0.3,0.5", "selection.ratio=0.7,0.8"], "is given twice"),
        (
            ["selection.rate=0.3,0.5"],
            r"with selection.rate=0.3 is not a valid run configuration:\n  selection.rate: .*no such field",
        ),
        (["selection.ratio=0.3,"], "nothing between two commas, or after the last; write null"),
        (["selection.ratio=0.3,0.30"], "selection.ratio=0.3 and selection.ratio=0.30 are the same run"),
        (["name=a,b"], "name=a and name=b are the same run"),
        (["selection.ratio=0.3,1.5"], r"with selection.ratio=1.5 is not a valid run configuration:\n  selection.ratio"),
        (["students.3.method=miniplm,pretrain"], "'3' is not an index of a list of 1 items"),
    ],
)
def test_what_makes_no_sweep_is_refused_by_name(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_sweep(CONTENT, settings, "base.yaml")
