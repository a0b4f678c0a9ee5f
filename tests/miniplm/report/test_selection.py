"""What the page says of selections that are not by the published rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from miniplm.records.run import RunRecord
from miniplm.report.content import gather_content
from miniplm.report.page import render_page
from miniplm.storage.root import Storage
from tests.miniplm.report.test_page import Page
from tests.miniplm.report_fixtures import RunPlan, make_run

TEXTS = {"code": "def f(x): return x + 1\n" * 300, "wiki": "The city lies on the river. " * 300}


def render(folder: Path, **rule: Any) -> str:
    made: tuple[Storage, RunRecord] = make_run(folder, plan=RunPlan(texts=TEXTS, num_sequences=30, students=(), rule=rule))
    page = Page(render_page(gather_content(*made)))
    assert page.faults == []
    return "".join(page.text.split())


@pytest.mark.parametrize(
    ("rule", "said", "unsaid"),
    [
        (
            {"ratio": None, "tokens": 400},
            [
                "candidate sequences kept: 400 tokens",
                "400 tokens, score mean: nats a token",
                "selection.tokens 400",
                "kept from r =",
            ],
            ["selection ratio"],
        ),
        (
            {"ratio": None, "threshold": -1.0, "where": "num_tokens < 33"},
            ["scores of at least -1", "selection.where num_tokens < 33", "left out before ranking", "of those that were ranked"],
            [],
        ),
        (
            {"mix": {"code": {"at_most": 0.2}}},
            ["selection ratio of 0.5", "with the highest r of their domain were kept", 'selection.mix {"code": {"at_most": 0.2}}'],
            ["kept from r ="],
        ),
        (
            {"score": "difference_score * ln(num_tokens)", "temperature": 0.3},
            ["score difference_score * ln(num_tokens)", "selection.temperature 0.3", "r alone does not tell what was kept"],
            ["kept from r =", "Dashed line: the threshold"],
        ),
    ],
)
def test_the_page_says_by_what_rule_was_kept(tmp_path: Path, rule: dict[str, Any], said: list[str], unsaid: list[str]) -> None:
    text = render(tmp_path, **rule)
    assert [words for words in said if words.replace(" ", "") not in text] == []
    assert [words for words in unsaid if words.replace(" ", "") in text] == []
