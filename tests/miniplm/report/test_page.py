"""The report against figures computed another way, hostile names and texts, runs that are not finished, and a real browser."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from miniplm import layout
from miniplm.errors import CorpusError, RunError, ScoreJoinError
from miniplm.evaluation.comparison import compare_students
from miniplm.records.manifests import DomainLoss, Evaluation
from miniplm.records.run import RunRecord, StudentRecord, save_run
from miniplm.report import write_report
from miniplm.report.content import ReportContent, gather_content
from miniplm.report.page import render_headline, render_page
from miniplm.storage.root import Storage
from tests.ends import flip_byte
from tests.miniplm.report_fixtures import CORPUS_ID, REFERENCE, TEACHER, RunPlan, make_run

_VOID = {"meta", "link", "br", "path"}


class Page(HTMLParser):
    """A page as a list of elements, its text, and the nesting faults found on the way."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        if self.open_tags:
            self.faults.append(f"never closed: {self.open_tags}")

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in _VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open_tags or self.open_tags.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open_tags:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))


def read_page(storage: Storage, run_name: str = "demo") -> Page:
    url = write_report(storage, run_name)
    assert url.endswith(f"runs/{run_name}/report.html")
    page = Page(storage.read_bytes(layout.run_report(run_name)).decode())
    assert page.faults == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "img", "form", "base"}
    links = [
        value or ""
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    return page


def read_scores(storage: Storage) -> pd.DataFrame:
    """Every candidate with its scores, joined by pandas from the files themselves."""

    def read(folder: str) -> pd.DataFrame:
        return pd.concat(pd.read_parquet(path) for path in sorted(Path(storage.path(folder)).glob("*.parquet")))

    corpus = read(f"corpora/{CORPUS_ID}/candidate")[["sequence_id", "domain", "num_tokens"]]
    for name, model in (("teacher", TEACHER), ("reference", REFERENCE)):
        scores = read(layout.scores_folder(CORPUS_ID, model.model_id))
        scores[name] = scores.nll_sum / scores.num_scored_tokens
        corpus = corpus.merge(scores[["sequence_id", name]], on="sequence_id", validate="one_to_one")
    return corpus.assign(r=corpus.reference - corpus.teacher, domain=corpus.domain.astype(str))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, RunRecord]:
    return make_run(tmp_path_factory.mktemp("run"), plan=RunPlan(num_sequences=200, num_per_shard=70))


@pytest.fixture(scope="module")
def content(run: tuple[Storage, RunRecord]) -> ReportContent:
    return gather_content(*run)


def test_histogram_counts_every_score_in_its_bin(run: tuple[Storage, RunRecord], content: ReportContent) -> None:
    scores = read_scores(run[0])
    histogram = content.histogram
    assert histogram is not None
    shown = sum(int(counts.sum()) for counts in histogram.counts.values())
    assert shown + histogram.num_below + histogram.num_above == 200
    assert shown >= 198
    for domain, group in scores.groupby("domain"):
        expected, _ = np.histogram(group.r, bins=histogram.edges)
        np.testing.assert_array_equal(histogram.counts[str(domain)], expected)


def test_threshold_is_an_edge_so_that_kept_lies_right_of_it(content: ReportContent) -> None:
    histogram, selection = content.histogram, content.selection
    assert histogram is not None
    assert selection is not None
    assert selection.threshold is not None
    edge = int(np.argmin(abs(histogram.edges - selection.threshold)))
    assert histogram.edges[edge] == selection.threshold
    right = sum(int(counts[edge:].sum()) for counts in histogram.counts.values())
    assert right + histogram.num_above == selection.num_selected == 100


def test_most_and_least_wanted_are_both_ends_of_a_full_sort(run: tuple[Storage, RunRecord], content: ReportContent) -> None:
    ranking = read_scores(run[0]).sort_values(["r", "sequence_id"], ascending=[False, True])
    assert [sequence.sequence_id for sequence in content.most_wanted] == ranking.sequence_id[:20].tolist()
    assert [sequence.sequence_id for sequence in content.least_wanted] == ranking.sequence_id[::-1][:20].tolist()
    assert {sequence.selected for sequence in content.most_wanted} == {True}
    assert {sequence.selected for sequence in content.least_wanted} == {False}
    for sequence, expected in zip(content.most_wanted, ranking[:20].itertuples(), strict=True):
        assert sequence.domain == expected.domain
        assert sequence.difference_score == pytest.approx(expected.r, abs=1e-12)
        assert sequence.teacher_nll == pytest.approx(expected.teacher, abs=1e-12)


def test_domain_table_agrees_with_pandas(run: tuple[Storage, RunRecord]) -> None:
    scores = read_scores(run[0])
    kept = set(scores.sort_values(["r", "sequence_id"], ascending=[False, True]).sequence_id[:100])
    html = write_and_read(run[0])
    section = html[html.index('<section id="domains">') : html.index('<section id="students">')]
    for domain, group in scores.groupby("domain"):
        selected = group[group.sequence_id.isin(kept)]
        cells = re.findall(r"<td[^>]*>(.*?)</td>", section[section.index(f"<bdi>{domain}</bdi></th>") :])[:12]
        share = selected.num_tokens.sum() / group.num_tokens.sum()
        assert cells[:4] == [
            f"{len(group):,}",
            f"{len(selected):,}",
            f"{group.num_tokens.sum():,}",
            f"{selected.num_tokens.sum():,}",
        ]
        assert cells[4] == f"{100 * share:.1f}&nbsp;%"
        assert cells[5] == f"{100 * group.num_tokens.sum() / scores.num_tokens.sum():.1f}&nbsp;%"
        assert [float(cell.replace("−", "-")) for cell in cells[7:]] == pytest.approx(
            [group.teacher.mean(), group.reference.mean(), *group.r.quantile([0.1, 0.5, 0.9])], abs=5.1e-4
        )


def write_and_read(storage: Storage) -> str:
    write_report(storage, "demo")
    return storage.read_bytes(layout.run_report("demo")).decode()


def test_page_says_what_was_run(run: tuple[Storage, RunRecord]) -> None:
    page = read_page(run[0])
    for expected in (
        "HuggingFaceTB/SmolLM2-135M",
        "models/reference-1",
        "134.5 M",
        CORPUS_ID,
        run[1].selection_id or "",
        "training-0",
        "corpus 7, selection 11, students.miniplm.training 3, students.pretrain.training 3",
        "learning_rate: 0.0006",
        "2.13.0",
        "started 2026-11-02 09:00 UTC, finished 2026-11-02 09:05 UTC",
    ):
        assert expected in page.text
    assert "478 a second" in page.text.replace("\xa0", " ")
    assert page.text.count("reused") >= 1


def test_counts_add_up_on_the_page_or_it_says_so(run: tuple[Storage, RunRecord], content: ReportContent) -> None:
    assert "244 records read from 2 files = 240 documents + 4 rejected. ✓ nothing is missing." in read_page(run[0]).text
    assert content.corpus is not None
    wrong = content.corpus.model_copy(update={"num_records": 250})
    assert "⚠ this does not add up: 6 records are unaccounted for" in render_page(replace(content, corpus=wrong))


def replace(content: ReportContent, **changes: object) -> ReportContent:
    from dataclasses import replace as replace_fields

    return replace_fields(content, **changes)  # type: ignore[arg-type]


def set_losses(content: ReportContent, miniplm: float | None, pretrain: float | None, **changes: object) -> ReportContent:
    """The run with other held-out losses (None: no such student); `changes` are made to the baseline."""
    students: dict[str, StudentRecord] = {}
    for name, loss in (("miniplm", miniplm), ("pretrain", pretrain)):
        if loss is not None:
            overall = DomainLoss(nats_per_token=loss, bits_per_byte=2.0, num_scored_tokens=10, num_sequences=1)
            evaluation = Evaluation(corpus_id="c", weights_digest="w", overall=overall, domains={}, seconds=1.0)
            update = {"evaluation": evaluation, **(changes if name == "pretrain" else {})}
            students[name] = content.record.students[name].model_copy(update=update)
    record = content.record.model_copy(update={"students": students})
    return replace(content, record=record, comparisons=compare_students(Storage("memory://no-losses"), record))


@pytest.mark.parametrize(
    ("miniplm", "pretrain", "ending"),
    [
        (
            5.0,
            5.25,
            "reaches 5.000 nats a token on held-out text, 0.250 lower (better) than 5.250 for random data of the same size.",
        ),
        (
            5.25,
            5.0,
            "reaches 5.250 nats a token on held-out text, 0.250 higher (worse) than 5.000 for random data of the same size.",
        ),
        (5.0, 5.0004, "reaches 5.000 nats a token on held-out text, no different from 5.000 for random data of the same size."),
        (5.0, None, "reaches 5.000 nats a token on held-out text."),
        (None, 5.0, "candidate tokens."),
    ],
)
def test_headline_tells_the_outcome_as_it_is(
    content: ReportContent, miniplm: float | None, pretrain: float | None, ending: str
) -> None:
    headline = Page(render_headline(set_losses(content, miniplm, pretrain))).text.replace("\xa0", " ")
    assert headline.startswith("Kept 5")
    assert headline.endswith(ending)


def test_headline_says_when_the_baseline_saw_another_number_of_tokens(content: ReportContent) -> None:
    headline = render_headline(set_losses(content, 5.0, 5.25, num_tokens=99))
    num_tokens = content.record.students["miniplm"].num_tokens
    assert f"for random data (99 tokens against {num_tokens:,})." in headline


def test_heldout_table_marks_the_lowest_and_the_difference(run: tuple[Storage, RunRecord]) -> None:
    html = write_and_read(run[0])
    row = re.search(r"<b>All domains</b></th>((?:(?!</tr>).)*4\.812.*?)</tr>", html)
    assert row is not None
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row.group(1))]
    assert cells == ["2,000", "★ best &nbsp;4.812", "−0.034", "1.950", "4.846", "1.950"]
    assert "class='better'>−0.034" in row.group(1)


def test_steps_of_a_flop_matched_student_are_told_with_what_they_are_of(content: ReportContent) -> None:
    students = {name: student.model_copy(update={"num_steps": 25_000}) for name, student in content.record.students.items()}
    students["pretrain"] = students["pretrain"].model_copy(update={"num_unmatched_steps": 100_000})
    page = render_page(replace(content, record=content.record.model_copy(update={"students": students})))
    assert page.count("25,000<br><small>of 100,000: ") == 1


def test_hostile_names_and_texts_stay_text(tmp_path: Path) -> None:
    attack = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&lt;"
    texts = {
        attack: f"{attack} \x00\x1b[31m </pre></article> \u202e right to left $\\frac{{1}}{{2}}$ " * 40,
        "数学・$x$ 🎉 " + "w" * 300: "素数は無限にある。" * 60,
    }
    storage, record = make_run(tmp_path, plan=RunPlan(texts=texts, num_sequences=30, rejected={attack: 2}))
    save_run(storage, record.model_copy(update={"config": {**record.config, attack: attack}, "versions": {attack: attack}}))
    page = read_page(storage)
    assert attack in page.text
    labels = {attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg"}
    assert f"Distribution of difference scores of the domain {attack}" in labels
    assert "数学・$x$ 🎉" in page.text
    assert "素数は無限にある。" in page.text
    assert "␀" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page.text)


def test_files_to_look_at_are_listed(tmp_path: Path) -> None:
    storage, record = make_run(tmp_path, plan=RunPlan(students=(), num_sequences=10))
    assert "Files to look at" not in read_page(storage).text
    path = layout.corpus_manifest(str(record.corpus_id))
    content = storage.read_json(path)
    source = content["sources"][0]
    content["rejected_by_file"] = {source["path"]: source["num_records"]}
    content["left_out"] = [{"source": "in/<b>", "reason": "hidden", "num_files": 11, "names": ["in/._a"]}]
    storage.write_json(path, content)
    text = read_page(storage).text
    assert f"no document: empty, or all records rejected{source['path']}1" in text.replace("\n", "")
    assert "left out of in/<b>: hiddenin/._a, ... (11 in all)11" in text.replace("\n", "")


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (RunPlan(students=()), "The run has trained no students."),
        (RunPlan(evaluated=False), "The students have not been evaluated on held-out text."),
        (RunPlan(texts={"only": "one domain. " * 200}), "Kept share of each domain"),
        (RunPlan(texts={f"domain {i:02}": f"text {i} of many. " * 80 for i in range(40)}, num_sequences=120), "domain 39"),
        (RunPlan(students=("miniplm",)), "no baseline: none of the students was trained on random data"),
        (RunPlan(students=("pretrain",)), "at the end"),
        (RunPlan(students=("miniplm", "pretrain", "miniplm-2", "pretrain-2"), num_steps=2000), "on a logarithmic axis"),
        (RunPlan(num_steps=1), "Training loss"),
        (RunPlan(rejected={}), "No record was rejected."),
        (RunPlan(ratio=1.0), "60 of 60"),
        (RunPlan(ratio=0.02), "1 of 60"),
        (RunPlan(score="sum"), "in nats a sequence"),
        (RunPlan(num_sequences=7), "The 7 most wanted"),
    ],
)
def test_page_holds_for_any_run(tmp_path: Path, plan: RunPlan, expected: str) -> None:
    storage, _ = make_run(tmp_path, plan=plan)
    assert expected in read_page(storage).text


def test_equal_scores_everywhere(tmp_path: Path) -> None:
    storage, record = make_run(tmp_path, nll=lambda domain, draw: (3.0, 3.5))
    content = gather_content(storage, record)
    assert content.histogram is not None
    assert sum(int(counts.sum()) for counts in content.histogram.counts.values()) == 60
    assert "r ≥ 0.500" in read_page(storage).text.replace("\xa0", " ")


def test_far_outliers_do_not_flatten_the_bulk(tmp_path: Path) -> None:
    draws = iter(range(3000))

    def nll(domain: str, draw: random.Random) -> tuple[float, float]:
        return (5000.0, 1.0) if next(draws) == 7 else (3.0, 3.0 + draw.random())

    storage, record = make_run(tmp_path, plan=RunPlan(num_sequences=3000, num_per_shard=3000, sequence_length=8), nll=nll)
    histogram = gather_content(storage, record).histogram
    assert histogram is not None
    assert histogram.edges[-1] - histogram.edges[0] < 12
    assert histogram.num_below == 1
    assert "Far outliers outside the axis, not drawn: 1." in read_page(storage).text


@pytest.mark.parametrize(
    "missing",
    [
        {"selection_id": None},
        {"corpus_id": None, "selection_id": None, "teacher": None, "reference": None, "students": {}, "stages": ()},
    ],
)
def test_unfinished_run_shows_what_it_has(tmp_path: Path, missing: dict[str, object]) -> None:
    storage, record = make_run(tmp_path)
    save_run(storage, record.model_copy(update={**missing, "finished_at": None}))
    assert "has not selected anything yet" in read_page(storage).text


def test_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        storage, _ = make_run(tmp_path / name)
        pages += [write_and_read(storage), write_and_read(storage)]
    assert len(set(pages)) == 1


def test_report_of_an_unknown_run_names_the_runs_there_are(run: tuple[Storage, RunRecord]) -> None:
    with pytest.raises(RunError, match="has no run 'nope'; the runs there are: demo"):
        write_report(run[0], "nope")


def test_damaged_scores_are_refused_and_the_old_page_stays(tmp_path: Path) -> None:
    storage, _ = make_run(tmp_path)
    before = write_and_read(storage)
    path = Path(storage.path(layout.score_shard(CORPUS_ID, TEACHER.model_id, 1)))
    flip_byte(path)
    with pytest.raises(ScoreJoinError, match="shard-00001 has broken teacher scores"):
        write_report(storage, "demo")
    assert storage.read_bytes(layout.run_report("demo")).decode() == before


def test_damaged_selection_is_refused(tmp_path: Path) -> None:
    storage, record = make_run(tmp_path)
    storage.delete(layout.selection_shard(record.selection_id or "", 0))
    with pytest.raises(CorpusError, match="make it with `miniplm select CONFIG`"):
        write_report(storage, "demo")


def test_resumed_training_draws_the_later_row_of_a_step(tmp_path: Path) -> None:
    storage, record = make_run(tmp_path, plan=RunPlan(students=("miniplm",)))
    rows = [(1, 9.0), (2, 8.0), (3, 7.0), (2, 6.0), (3, 5.0)]
    lines = [
        json.dumps({"step": step, "loss": loss, "learning_rate": 1e-3, "gradient_norm": 1.0, "num_tokens": 1, "seconds": 0.1})
        + "\n"
        for step, loss in rows
    ]
    storage.write_bytes(f"{layout.student_folder('demo', 'miniplm')}/metrics.jsonl", "".join(lines).encode())
    curve = gather_content(storage, record).curves["miniplm"]
    assert curve.step.tolist() == [1, 2, 3]
    assert curve.loss.tolist() == [9.0, 6.0, 5.0]
