"""What the figures show, and what an SVG must be to stand on a page."""

import re
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from math import nan
from typing import Any

import pytest
from matplotlib.figure import Figure
from report_builders import judge_pairs, make_usual

from slimdown.report import figures
from slimdown.report.figures import write_svg
from slimdown.stats.estimates import Estimate


def estimate(value: float, half: float = 0.02) -> Estimate:
    return Estimate(value, half / 2, value - half, value + half)


def make_mean(value: str, others: str, *seeds: float) -> figures.DrawnMean:
    return figures.DrawnMean(value, others, seeds, estimate(sum(seeds) / len(seeds), 0.9))


LEARNED = [make_mean("4", "", 0.1, 0.14), make_mean("8", "", 0.3, 0.32), make_mean("16", "", 0.2)]
KEPT = [make_mean("4", "", -0.01, -0.02), make_mean("8", "", -0.05, 0), make_mean("16", "", -0.2)]
PANELS = {"learned": LEARNED, "kept": KEPT}


def read_texts(figure: Figure) -> list[str]:
    elements = ElementTree.fromstring(write_svg(figure)).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()) for text in elements]


def test_an_svg_is_a_titled_image_in_the_pages_colors_with_ids_of_its_own() -> None:
    curves = {"a": [(0.5, estimate(0.1)), (0.25, estimate(0.0)), (1.0, estimate(-0.2))]}
    ids: list[str] = []
    for figure in (
        figures.draw_changes(judge_pairs(make_usual())),
        figures.draw_changes(judge_pairs(make_usual()), figures.PHONE_WIDTH),
        figures.draw_seeds("lora.r", PANELS),
        figures.draw_seeds("lora.r", PANELS, figures.PHONE_WIDTH),
        figures.draw_learned_and_kept("lora.r", LEARNED, KEPT, "points"),
        figures.draw_scales(curves),
    ):
        svg = write_svg(figure)
        root = ElementTree.fromstring(svg)
        assert (root.get("role"), root[0].tag[-5:]) == ("img", "title")
        assert figures.INK not in svg
        assert "currentColor" in svg
        assert "<style" not in svg  # a rule inside one image would hold for the whole page
        own = re.findall(r'\bid="([^"]+)"', svg)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) == set(own)
        ids += own
    assert len(ids) == len(set(ids)) > 0


def test_the_title_of_an_svg_may_hold_a_backslash() -> None:
    svg = write_svg(figures.draw_seeds(r"dataset.path=C:\data\1", PANELS))
    assert r"<title>Change by dataset.path=C:\data\1</title>" in svg


def test_the_dots_set_the_axes_and_every_seed_is_one() -> None:
    learned, kept = figures.draw_seeds("lora.r", PANELS).axes
    assert [axes.get_title() for axes in (learned, kept)] == ["learned", "kept"]
    dots: list[Any] = [line for line in learned.lines if line.get_alpha() == 0.5]
    assert sorted(y for line in dots for y in line.get_ydata()) == pytest.approx([10, 14, 30, 32])
    low, high = learned.get_ylim()
    assert low < 0 < 32 < high < 50  # the intervals reach 120


def test_a_line_joins_the_values_in_their_order() -> None:
    figure = figures.draw_learned_and_kept("lora.r", LEARNED, KEPT, "points")
    joined: Any = figure.axes[0].lines[0]
    assert list(joined.get_xdata()) == pytest.approx([-1.5, -2.5, -20])
    assert list(joined.get_ydata()) == pytest.approx([12, 31, 20])
    assert {"4", "8", "16"} <= set(read_texts(figure))


def test_other_settings_have_colors_that_a_legend_names() -> None:
    means = [make_mean("4", f"keep={k}", 0.1, 0.2) for k in ("none", "kl")]
    assert {"keep=none", "keep=kl"} <= set(read_texts(figures.draw_seeds("lora.r", {"a": means})))


def test_a_line_has_the_color_of_its_dots_where_a_panel_lacks_the_first_settings() -> None:
    none, kl = (
        [make_mean(rank, f"keep={k}", 0.1, 0.2) for rank in ("4", "8")] for k in ("none", "kl")
    )
    axes = figures.draw_seeds("lora.r", {"a": [*none, *kl], "b": kl}).axes[1]
    lines: list[Any] = axes.lines
    [curve] = [line for line in lines if line.get_alpha() == 0.6]
    assert {line.get_color() for line in lines if line.get_alpha() == 0.5} == {curve.get_color()}


def test_values_keep_their_order_where_a_panel_lacks_the_first() -> None:
    unmeasured = replace(LEARNED[0], mean=estimate(nan))
    figure = figures.draw_seeds("lora.r", {"a": [unmeasured, *LEARNED[1:]], "b": KEPT})
    for axes, n_joined in zip(figure.axes, (2, 3), strict=True):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "8", "16"]
        curves: list[Any] = [line for line in axes.lines if line.get_alpha() == 0.6]
        across = [list(curve.get_xdata()) for curve in curves]
        assert across == [sorted(across[0])]
        assert len(across[0]) == n_joined


def test_the_axis_of_scales_has_each_scale_in_its_place() -> None:
    figure = figures.draw_scales({"a": [(value, estimate(0.1)) for value in (0.25, 0.5, 1.0)]})
    assert [*figure.axes[0].get_xticks()] == [0.25, 0.5, 1.0]
    assert {"0.25", "0.5", "1"} <= set(read_texts(figure))


def test_a_name_with_control_characters_is_drawn_without_a_warning() -> None:
    curves = {"\x1b[2J": [(1.0, estimate(0.1))]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_svg(figures.draw_scales(curves))
    assert not [warning for warning in caught if "\x1b" in str(warning.message)]
