"""What the page says of selections that are not by the published rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from miniplm.proxy.cost import count_proxy_flops
from miniplm.records.manifests import ModelEntry
from miniplm.records.overlap import CopiedShare, CopiesSummary, OverlapSummary
from miniplm.records.proxies import ProxyManifest
from miniplm.records.run import RunRecord
from miniplm.records.truth import UNKNOWN, KindRow, TruthSummary
from miniplm.report.content import gather_content
from miniplm.report.markup import format_told
from miniplm.report.overlap import render_overlap
from miniplm.report.page import render_page
from miniplm.report.proxy import render_proxy
from miniplm.report.truth import render_truth
from miniplm.run.proxy_summary import ProxySummary
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
            [
                "scores of at least -1",
                "selection.where num_tokens < 33",
                "were left out before ranking",
                "of those that were ranked",
            ],
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


def test_what_is_not_labelled_is_not_shown_as_dirt() -> None:
    rows = [
        KindRow(
            kind=kind,
            is_clean=kind == "clean",
            is_mixed=False,
            num_candidates=2,
            num_selected=1,
            num_candidate_tokens=20,
            num_selected_tokens=10,
            mean_difference_score=0.1,
        )
        for kind in ("clean", "ocr", UNKNOWN)
    ]
    summary = TruthSummary(
        field="kind",
        clean=("clean",),
        records={"clean": 2, "ocr": 2, UNKNOWN: 2},
        gone_files=(),
        kinds=tuple(rows),
        clean_share=0.5,
        precision=0.5,
        recall=0.5,
        ratio=0.5,
        ratios=(),
    )
    page = render_truth(summary)
    assert page.count("--c:var(--d1)") == page.count("--c:var(--d7)") == 3  # a legend, a bar and a line of the table each
    assert "Grey: not labelled" in page
    assert "Grey" not in render_truth(summary.model_copy(update={"kinds": tuple(rows[:2])}))
    # Where nothing is known to be clean, nothing is known to be dirt.
    unjudged = {"clean": ("good",), "clean_share": None, "precision": None, "recall": None}
    page = render_truth(summary.model_copy(update=unjudged | {"kinds": tuple(rows[1:])}))
    assert "Orange" not in page
    assert "--c:var(--d1)" not in page


def test_a_proxy_that_costs_more_than_it_saves_is_not_said_to_save() -> None:
    model = ModelEntry(model_id="m", source="m", dtype="float32", weights_digest="w", num_parameters=10)
    manifest = ProxyManifest(
        proxy_id="p",
        kind="head",
        corpus_id="c",
        labels_id="l",
        share=0.5,
        seed=0,
        teacher=model,
        reference=model,
        num_labels=100,
        num_label_tokens=1000,
        num_fitted=100,
        num_features=1,
        penalty=1.0,
        weights_digest="w",
        measurement_digest="m",
        seconds=1.0,
        device="cpu",
        versions={},
    )
    # The reference is as large as the teacher: its states for all cost more than the teacher's other half.
    flops = count_proxy_flops(manifest, 2000)
    page = render_proxy(
        ProxySummary(manifest=manifest, min_overlap=0.5, fidelity={}, problem="gone", flops=flops, hours_saved=-0.5)
    )
    assert "FLOPs that it takes more" in page
    assert "25.0&nbsp;%" in page
    assert "Time that it takes more" in page
    assert "30&nbsp;min" in page
    assert "saved" not in page
    assert "cannot be told any more: gone" in page


def test_copies_and_evaluation_texts_that_were_left_out_are_said_to_be() -> None:
    counts = CopiedShare(num_exact=0, num_near=0, num_tokens=10, repeated_tokens=0)
    summary = OverlapSummary(selection_id="s", copies=CopiesSummary(kept=counts, candidates=counts, groups=(), num_crowded=0))
    assert "kept at most one of each group" in render_overlap(summary, {"duplicates": "best"})
    assert "keeps of each group the one" in render_overlap(summary, {})


def test_commands_in_sentences_are_code_and_text_stays_text() -> None:
    assert format_told("run `miniplm evaluate <b>`, <i>") == "run <code>miniplm evaluate &lt;b&gt;</code>, &lt;i&gt;"
    assert format_told("it`s") == "it`s"
