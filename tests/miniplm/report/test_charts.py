"""The report against figures computed another way, hostile names and texts, runs that are not finished, and a real browser."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from miniplm.report.charts import choose_ticks, draw_distribution, draw_loss_curves
from miniplm.report.content import make_loss_curve
from miniplm.report.markup import (
    cut_text,
    escape,
    fill,
    format_code,
    format_count,
    format_name,
    format_nats,
    format_seconds,
    format_share,
    format_time,
)


def test_smooth_loss_is_the_mean_of_the_steps_around() -> None:
    curve = make_loss_curve(np.arange(1, 21), np.arange(1.0, 21.0) ** 2)
    assert curve.smooth_loss[0] == 1.0
    assert curve.smooth_loss[9] == pytest.approx((81 + 100 + 121) / 3)
    assert curve.smooth_loss[19] == pytest.approx((17**2 + 18**2 + 19**2 + 20**2) / 4)


def test_long_curve_is_thinned_to_means() -> None:
    curve = make_loss_curve(np.arange(1, 8001), np.tile([1.0, 3.0], 4000))
    assert len(curve.step) == 800
    assert curve.loss == pytest.approx(np.full(800, 2.0))
    assert curve.step[0] == 5.5


def test_charts_are_well_formed_and_take_the_colours_of_the_page() -> None:
    edges = np.linspace(-1, 1, 9)
    svg = draw_distribution(edges, np.array([1, 0, 2, 3, 9, 4, 1, 1]), 0.25, "--d3", "a label")
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "a label"
    assert "var(--d3)" in svg
    assert "var(--noise)" in svg
    assert "var(--threshold)" in svg
    curve = make_loss_curve(np.arange(1, 50), np.linspace(9, 3, 49))
    curves = draw_loss_curves({"a": curve, "b": curve}, (1, 49, 2, 10), "log", "losses")
    ElementTree.fromstring(curves)
    assert "var(--s0)" in curves
    assert "var(--s1)" in curves
    for text in (svg, curves):
        assert not re.search(r"#[0-9a-f]{6}|<text|<style|\bid=", text)


def test_ticks_are_round_and_inside() -> None:
    assert choose_ticks(-0.9, 1.7) == [(-0.5, "−0.5"), (0.0, "0"), (0.5, "0.5"), (1.0, "1"), (1.5, "1.5")]
    assert [label for _, label in choose_ticks(1, 4000, scale="log")] == ["1", "3", "10", "30", "100", "300", "1,000", "3,000"]


def test_numbers_and_texts_are_written_as_agreed() -> None:
    assert format_nats(-0.0004, signed=True) == "0.000"
    assert format_nats(-0.0344, signed=True) == "−0.034"
    assert format_nats(None) == "–"
    assert format_share(1, 0) == "–"
    assert format_count(96313) == "96,313"
    assert format_seconds(0.04) == "0.0&nbsp;s"
    assert format_seconds(59.6) == "1&nbsp;min&nbsp;00&nbsp;s"
    assert format_seconds(7384) == "2&nbsp;h&nbsp;03&nbsp;min"
    assert format_time("2026-11-02T09:00:00+00:00") == "2026-11-02 09:00 UTC"
    assert format_name("a" * 25) == f'<bdi class="long">{"a" * 25}</bdi>'
    assert escape("\ud800\x85a\tb\n\r") == "\ufffd\ufffda\tb\n␍"
    assert fill("<i title='{}'>{}</i>", "<'\x1b", format_code("{&}")) == "<i title='&lt;&#39;␛'><code>{&amp;}</code></i>"
    assert cut_text("ab\ncd\nef", 400, 2) == "ab\ncd"
    assert cut_text("ab\ncd\nef", 4, 9) == "ab\nc"
    assert cut_text("abcd\u0301e", 4, 9) == "abc"
    assert cut_text("short", 400, 8) == "short"
