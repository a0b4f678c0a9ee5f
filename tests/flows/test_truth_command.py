"""What people see of `corpus.truth`, named for a run that was finished without it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

from rich.console import Console

from flows.cli.truth import print_truth
from miniplm.records.truth import KindRow, RatioRow, TruthSummary
from miniplm.storage.root import Storage
from tests.command_line import run_miniplm
from tests.miniplm.corpus_fixtures import read_tree
from tests.tiny_runs import FinishedRun

TRUTH = ["--set", "corpus.truth=meta.domain", "--set", "corpus.clean=[news, verse]"]


def test_a_finished_run_is_judged_by_a_field_that_is_named_later(
    finished_run: FinishedRun, embedded_prefect: dict[str, str], tmp_path: Path
) -> None:
    data = shutil.copytree(finished_run.data, tmp_path / "data")
    before = read_tree(Storage(str(data)), "corpora") | read_tree(Storage(str(data)), "selections")
    arguments = [str(finished_run.config), "--set", f"storage={data}", *TRUTH]
    result = run_miniplm("inspect", *arguments, "--by-kind", "--json", prefect=embedded_prefect)
    assert result.returncode == 0, result.stderr
    truth = json.loads(result.stdout)
    record = json.loads((data / "runs" / "tiny" / "run.json").read_text())
    selection = json.loads((data / "selections" / record["selection_id"] / "manifest.json").read_text())
    # Sequences are of one domain, so the kinds are what the selection says of domains.
    assert {row["kind"]: (row["num_candidates"], row["num_selected"]) for row in truth["kinds"]} == {
        domain: (counts["num_candidates"], counts["num_selected"]) for domain, counts in selection["domains"].items()
    }
    kept = {domain: counts["num_selected_tokens"] for domain, counts in selection["domains"].items()}
    assert truth["precision"] == (kept["news"] + kept["verse"]) / sum(kept.values())

    result = run_miniplm("report", *arguments, prefect=embedded_prefect)
    assert result.returncode == 0, result.stderr
    page = (data / "runs" / "tiny" / "report.html").read_text()
    sections = [part.split('"')[0] for part in page.split('<section id="')[1:]]
    assert sections[0] == "truth"
    assert "The field <code>meta.domain</code> of the documents says what they are" in page
    assert page.count('aria-label="Precision and recall of clean text by selection ratio"') == 1
    assert read_tree(Storage(str(data)), "corpora") | read_tree(Storage(str(data)), "selections") == before


def make_summary(**changes: object) -> TruthSummary:
    row = KindRow(
        kind="web",
        is_clean=True,
        is_mixed=False,
        num_candidates=4,
        num_selected=3,
        num_candidate_tokens=40,
        num_selected_tokens=30,
        mean_difference_score=1.25,
    )
    summary = TruthSummary(
        field="kind",
        clean=("web",),
        records={"unknown": 2, "web": 6},
        gone_files=("a.jsonl",),
        kinds=(row, row.model_copy(update={"kind": "clean and dirt in one", "is_clean": False, "is_mixed": True})),
        clean_share=0.5,
        precision=0.75,
        recall=0.9,
        ratio=0.5,
        ratios=tuple(RatioRow(ratio=step / 20, precision=0.5 + step / 40, recall=step / 20) for step in range(1, 21)),
    )
    return summary.model_copy(update=changes)


def show(summary: TruthSummary) -> str:
    console = Console(width=160, highlight=False, markup=False, file=io.StringIO())
    print_truth(console, summary)
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_kinds_precision_recall_and_other_ratios_are_printed() -> None:
    said = show(make_summary())
    assert "web * 3 of 4 75% 75% +1.250" in said
    assert "clean and dirt in one 3 of 4" in said
    assert "2 of 8 records have no kind: unknown" in said
    assert "mean of reference - teacher, nats a token; * clean" in said
    assert "the files are not there any more: a.jsonl" in said
    assert "clean text: precision 75.0% (random text: 50.0%), recall 90.0%, by tokens" in said
    assert "ratio precision recall" in said
    assert "0.1 55.0% 10.0% 0.2 60.0% 20.0%" in said
    assert "0.9 95.0% 90.0%" in said


def test_where_no_label_is_clean_the_next_step_is_printed() -> None:
    said = show(make_summary(clean=("good",), clean_share=None, precision=None, recall=None, ratios=()))
    assert (
        "no candidate is labelled good, so there is no precision or recall; set corpus.clean to labels of clean text among web"
        in said
    )


def test_a_clean_label_that_no_record_bears_is_named() -> None:
    assert "corpus.clean names what no record is labelled: wbe; labels are web" in show(make_summary(clean=("web", "wbe")))
    assert "no record" not in show(make_summary())
