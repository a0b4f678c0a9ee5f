"""The report's sections about compute and tasks, standard errors, and which student the headline tells of."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miniplm import layout
from miniplm.evaluation.losses import SequenceLosses, write_losses
from miniplm.evaluation.scaling import fit_scaling_law
from miniplm.records.run import RunRecord
from miniplm.report.charts import choose_power_ticks, draw_scaling_curves
from miniplm.report.content import ReportContent, gather_content
from miniplm.report.markup import format_error, format_power, format_times
from miniplm.report.page import render_headline
from miniplm.report.students import choose_pair
from miniplm.storage.root import Storage
from tests.miniplm.made_curves import TOKENS_PER_STEP, MadeStudent, add_students, law_through
from tests.miniplm.report.test_page import Page, read_page
from tests.miniplm.report_fixtures import TEACHER, RunPlan, make_run

FINAL_FLOPS = 6 * 6_300_000 * 2000.0 * TOKENS_PER_STEP
BASELINE_LAW = law_through(4.8, FINAL_FLOPS)
BETTER_LAW = law_through(BASELINE_LAW.predict_loss(1.5 * FINAL_FLOPS), FINAL_FLOPS)
HOSTILE = '"><b>x'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, RunRecord]:
    return make_run(tmp_path_factory.mktemp("run"), plan=RunPlan(num_sequences=20))


@pytest.fixture(scope="module")
def run(made: tuple[Storage, RunRecord]) -> tuple[Storage, RunRecord]:
    """A baseline, a student that needs 1.5 times less, and one with a teacher; the names are not well-behaved."""
    students = {
        "random": MadeStudent(BASELINE_LAW, "pretrain", accuracies={"piqa": 0.55, "arc_easy": 0.40, "lambada": 0.2}),
        HOSTILE: MadeStudent(BETTER_LAW, accuracies={"piqa": 0.57, "arc_easy": 0.39}),
        "taught": MadeStudent(BASELINE_LAW, "vanilla-kd", num_steps=240, milestone_every_steps=80, num_unmatched_steps=2000),
    }
    return made[0], add_students(*made, students, run_name="curves")


@pytest.fixture(scope="module")
def page(run: tuple[Storage, RunRecord]) -> Page:
    return read_page(run[0], "curves")


def find_text(page: Page) -> str:
    return page.text.replace("\xa0", " ")


def test_savings_are_told_in_words(page: Page) -> None:
    assert (
        f"{HOSTILE} reaches 4.594 nats a token with 6.0·1013 FLOPs, by its fit. The baseline random needs 1.5 times the FLOPs to come there"
        in find_text(page)
    )
    assert "a saving of compute and of data. For that the baseline was followed 1.5 times beyond its last checkpoint." in find_text(
        page
    )


def test_students_without_a_fit_say_why(page: Page) -> None:
    assert "taught: the held-out losses of 3 checkpoints are known, a fit of three constants needs at least 4" in find_text(page)
    assert "taught: its own curve has no fit." in find_text(page)


def test_each_fitted_checkpoint_is_a_dot_that_tells_its_figures(page: Page) -> None:
    dots = [attributes for tag, attributes in page.elements if tag == "b" and "left:" in (attributes.get("style") or "")]
    assert len(dots) == 18 + 18 + 3  # of 20 each two are in the warm-up; those of the third are drawn without a line
    titles = [dot["title"] or "" for dot in dots]
    loss = BETTER_LAW.predict_loss(FINAL_FLOPS / 2)
    assert f"{HOSTILE}, step 1,000: {loss:.3f} ± 0.021 nats a token after 800,000 tokens, 3.02e+13 FLOPs" in titles
    places = [float(value) for dot in dots for value in re.findall(r"(?:left|bottom):(-?[\d.]+)%", dot["style"] or "")]
    assert len(places) == 2 * len(dots)
    assert all(0 <= place <= 100 for place in places)


def test_steps_and_flops_of_a_student_with_a_teacher_in_training(page: Page) -> None:
    assert "240of 2,000: FLOP-matched" in find_text(page)
    flops = 240 * TOKENS_PER_STEP * (6 * 6_300_000 + 2 * TEACHER.num_parameters)
    assert f"{flops:.1e}".replace("e+", "·10") in find_text(page)
    meanings = [attributes["title"] or "" for tag, attributes in page.elements if tag == "abbr"]
    assert any("the teacher runs along" in meaning for meaning in meanings)
    assert any("steps * 3 N / (3 N + N_teacher)" in meaning for meaning in meanings)


def test_accuracies_have_standard_errors_and_differences(page: Page) -> None:
    text = find_text(page)
    # (57 + 39) / 2, sqrt(.57 * .43 / 500) and sqrt(.39 * .61 / 500): 2.21 and 2.18 points, together 1.55 on the mean.
    assert re.search(r"Average of 2\s*★ best 48\.0 ± 1\.6\s*\+0\.5 ± 2\.2\s*47\.5 ± 1\.6", text)
    assert re.search(r"piqa\s*acc_norm\s*500\s*★ best 57\.0 ± 2\.2\s*\+2\.0 ± 3\.1\s*55\.0 ± 2\.2", text)
    assert re.search(r"lambada\s*acc_norm\s*500\s*––\s*20\.0 ± 1\.8", text)
    assert "1 tasks that not all students have are not in the average" in text


def test_heldout_losses_have_standard_errors_also_of_their_paired_difference(made: tuple[Storage, RunRecord]) -> None:
    """Both students find the second document harder by far: the difference is known much better than either loss."""
    storage, record = made
    plain = MadeStudent(BASELINE_LAW, "pretrain", 20, 20, standard_error=0.5)
    record = add_students(
        storage, record, {"random": plain, "chosen": MadeStudent(BETTER_LAW, "miniplm", 20, 20)}, run_name="paired"
    )
    students = {}
    for name, sums in (("random", [30.0, 60.0, 40.0]), ("chosen", [29.0, 58.5, 39.5])):
        losses = SequenceLosses(
            np.arange(3), np.array(["licence"] * 3), np.arange(3), np.full(3, 10, dtype=np.int64), np.array(sums)
        )
        digest = write_losses(storage, record.students[name].training_id, losses)
        evaluation = record.students[name].evaluation
        assert evaluation is not None
        students[name] = record.students[name].model_copy(
            update={"evaluation": evaluation.model_copy(update={"losses_digest": digest})}
        )
    content = gather_content(storage, record.model_copy(update={"students": students}))
    comparison = content.comparisons["chosen"]
    difference = comparison.domains["licence"]
    assert comparison.overall is not None
    assert difference.nats_per_token == comparison.overall.nats_per_token
    # differences a token -0.1, -0.15, -0.05: mean -0.1, standard deviation 0.05, over sqrt(3)
    assert difference.nats_per_token == pytest.approx(-0.1)
    assert difference.nats_standard_error == pytest.approx(0.05 / 3**0.5)
    from miniplm.report.students import render_students

    text = Page(render_students(content)).text.replace("\xa0", " ")
    assert "± 0.029" in text
    assert "± 0.500" in text
    assert "over the differences of each document" in text


def headline_student(content: ReportContent, methods: dict[str, str]) -> str | None:
    students = {name: content.record.students["random"].model_copy(update={"method": method}) for name, method in methods.items()}
    pair = choose_pair(content.record.model_copy(update={"students": students}))
    return None if pair is None else pair.name


def test_headline_is_of_a_student_of_the_selection(run: tuple[Storage, RunRecord]) -> None:
    content = gather_content(*run)
    assert (
        headline_student(content, {"kd": "vanilla-kd", "seq": "seqkd", "both": "miniplm+vanilla-kd", "mine": "miniplm"}) == "mine"
    )
    assert headline_student(content, {"kd": "vanilla-kd", "both": "miniplm+vanilla-kd", "base": "pretrain"}) == "both"
    assert headline_student(content, {"kd": "vanilla-kd", "seq": "seqkd", "base": "pretrain"}) is None
    pair = choose_pair(content.record)
    assert pair is not None
    assert pair.baseline == content.record.students["random"]
    assert "lower (better) than 4.800 for random data" in Page(render_headline(content)).text.replace("\xa0", " ")


def test_a_page_without_milestones_and_tasks_has_neither_section(made: tuple[Storage, RunRecord]) -> None:
    page = read_page(made[0])
    ids = [attributes.get("id") for tag, attributes in page.elements if tag == "section"]
    assert "students" in ids
    assert "scaling" not in ids
    assert "tasks" not in ids
    links = [attributes.get("href") for tag, attributes in page.elements if tag == "a"]
    assert "#scaling" not in links


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ({"num_steps": 200, "milestone_every_steps": 20}, "no student of method pretrain with the same architecture"),
        ({"num_steps": 20, "milestone_every_steps": 10, "settings": {"training": {"warmup_steps": 20}}}, "lie in the warm-up"),
        ({"law": law_through(4.8, FINAL_FLOPS, exponent=1e-9), "num_steps": 60, "milestone_every_steps": 10}, "What to doubt"),
        ({"standard_error": None, "num_steps": 60, "milestone_every_steps": 10}, "only 6 checkpoints"),
    ],
)
def test_section_holds_for_any_curve(made: tuple[Storage, RunRecord], student: dict[str, Any], expected: str) -> None:
    add_students(*made, {"only": MadeStudent(**{"law": BETTER_LAW, **student})}, run_name="any")
    assert expected in find_text(read_page(made[0], "any"))
    made[0].delete(layout.training_folder("training-only"))


def test_chart_of_curves_is_well_formed_and_takes_the_colours_of_the_page() -> None:
    flops = [1e13, 2e13, 4e13, 8e13, 1.6e14]
    fit = fit_scaling_law(flops, [5.0, 4.5, 4.2, 4.05, 3.9], num_samples=10)
    svg = draw_scaling_curves({"a": (0, fit), "b": (7, fit)}, (1e13, 1e15, 3.0, 5.0), "losses")
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "losses"
    assert "var(--s0)" in svg
    assert "var(--s1)" in svg
    assert svg.count("opacity: 0.13") == 2  # the bands
    assert svg.count("stroke-dasharray") == 2  # what lies beyond the checkpoints
    assert not re.search(r"#[0-9a-f]{6}|<text|<style|<use|\bid=", svg)


def test_powers_are_written_as_agreed() -> None:
    assert format_power(6.048e13) == "6.0·10<sup>13</sup>"
    assert format_power(2e-3) == "2.0·10<sup>−3</sup>"
    assert [format_times(value) for value in (0.8234, 1.5, 22.31, 625_000.0)] == ["0.823", "1.5", "22.3", "625,000"]
    assert format_error(None) == ""
    assert format_error(0.0214) == "&nbsp;<small>±&nbsp;0.021</small>"
    assert [label for _, label in choose_power_ticks(2e12, 4e13)] == [
        f"3·10<sup>{12}</sup>",
        "10<sup>13</sup>",
        "3·10<sup>13</sup>",
    ]
    assert [value for value, _ in choose_power_ticks(1e10, 1e24)] == [1e10, 1e13, 1e16, 1e19, 1e22]


def test_curves_of_a_run_are_listed_in_the_words(page: Page) -> None:
    for word in ("compute saving", "data saving", "FLOPs", "standard error"):
        assert word in page.text


def test_page_is_written_where_it_was(run: tuple[Storage, RunRecord], page: Page) -> None:
    assert Path(run[0].path(layout.run_report("curves"))).is_file()
    assert page.faults == []
