"""What the figures show, and what an SVG must be to stand in a page."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from math import nan

import matplotlib
import pytest
from made_up import changed
from matplotlib.figure import Figure
from matplotlib.text import Text

from slimdown.report import drawing, plots
from slimdown.report.plots import Trade
from slimdown.report.words import LOOKS
from slimdown.stats.changes import Verdict
from slimdown.stats.paired import Estimate
from slimdown.training.fine_tune import StepRecord


def estimate(value: float, half: float = 0.02) -> Estimate:
    return Estimate(value, half / 2, value - half, value + half)


TWO = changed(
    fell=([1.0] * 60, [1.0] * 20 + [0.0] * 40), rose=([0.0] * 60, [0.0] * 20 + [1.0] * 40)
)
RUNS = [
    Trade("r=4", estimate(0.1), estimate(0.01)),
    Trade("r=8", estimate(0.3), estimate(0.05)),
    Trade("wasteful " * 40, estimate(0.2), estimate(0.2)),
]


def every_figure() -> dict[str, Figure]:
    history = [StepRecord(step, {"loss": 3 - step / 10}) for step in range(1, 11)]
    return {
        "forest": plots.forest(TWO),
        "answers": plots.answers(TWO),
        "training_curve": plots.training_curve(history, 3.0, 2.0),
        "learning_forgetting": plots.learning_forgetting(RUNS),
        "by_param": plots.by_param(
            "lora.r", {"a": [(8, estimate(0.1)), (4, estimate(0.0)), (16, estimate(-0.2))]}
        ),
        "heat_map": plots.heat_map(["a", "b"], {"rows": [(estimate(-0.123), "forgotten"), None]}),
    }


def texts(figure: Figure) -> list[str]:
    """Every text of the figure, as the SVG holds it."""
    root = ElementTree.fromstring(drawing.svg(figure))
    return [
        "".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")
    ]


def test_an_svg_is_an_image_with_a_title_in_the_pages_colours() -> None:
    for name, figure in every_figure().items():
        text = drawing.svg(figure)
        root = ElementTree.fromstring(text)
        assert root.get("role") == "img", name
        assert root[0].tag.endswith("title"), name
        assert root[0].text, name
        assert text.startswith("<svg"), name
        assert drawing.INK not in text, name
        assert "currentColor" in text, name
        assert "<style" not in text, name  # a rule inside one image would hold for the whole page
        assert not re.search(r"href=\"(?!#)", text), name


def test_ids_of_different_figures_never_meet() -> None:
    ids = [
        found
        for figure in every_figure().values()
        for found in re.findall(r'\bid="([^"]+)"', drawing.svg(figure))
    ]
    assert len(ids) == len(set(ids)) > 0


def test_every_reference_inside_an_svg_has_its_target() -> None:
    for figure in every_figure().values():
        text = drawing.svg(figure)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) == set(
            re.findall(r'\bid="([^"]+)"', text)
        )


def test_the_same_numbers_give_the_same_bytes() -> None:
    one, other = every_figure(), every_figure()
    assert [drawing.svg(f) for f in one.values()] == [drawing.svg(f) for f in other.values()]
    assert drawing.png(one["forest"]) == drawing.png(other["forest"])


def test_a_png_is_one() -> None:
    assert drawing.png(plots.forest(TWO)).startswith(b"\x89PNG\r\n\x1a\n")


def test_no_setting_of_matplotlib_outlives_a_plot() -> None:
    before = dict(matplotlib.rcParams)
    every_figure()
    assert dict(matplotlib.rcParams) == before


def test_the_forest_names_each_benchmark_its_verdict_and_its_questions() -> None:
    shown = texts(plots.forest(TWO))
    assert {"fell", "rose", "forgotten", "improved", "60"} <= set(shown)
    assert set(LOOKS) == set(Verdict)


def test_a_name_with_markup_or_dollars_is_shown_as_it_is() -> None:
    strange = changed(**{"a<b>&$x$": ([1.0, 0.0], [0.0, 1.0])})
    assert "a<b>&$x$" in texts(plots.forest(strange))


def test_answers_are_counted_where_they_are_right_or_wrong() -> None:
    shown = texts(plots.answers(TWO))
    assert (
        shown.count("20") >= 2
    )  # 20 kept of the one, 20 missed of the other; the axis has a 20 of its own
    assert shown.count("40") >= 2
    graded = changed(graded=([0.5, 0.25, 0.75], [0.5, 0.5, 0.5]))
    assert texts(plots.answers(graded)) == ["no benchmark is scored right or wrong"]


@pytest.mark.parametrize(
    "scores",
    [
        ([1.0], [0.0]),
        ([0.5], [0.25]),  # one question that is not right or wrong has no interval at all
        ([1.0] * 5, [1.0] * 5),
        ([0.0] * 5, [0.0] * 5),
    ],
)
def test_the_forest_of_few_or_like_answers_can_be_drawn(
    scores: tuple[list[float], list[float]],
) -> None:
    for draw in (plots.forest, plots.answers):
        assert "nan" not in drawing.svg(draw(changed(only=scores))).lower()


def test_a_training_curve_holds_the_validation_losses() -> None:
    history = [
        StepRecord(1, {"loss": 2.5}),
        StepRecord(2, {"loss": nan}),
        StepRecord(3, {"train_runtime": 1.0}),
    ]
    assert "validation loss: 2.500 before, 1.250 after" in texts(
        plots.training_curve(history, 2.5, 1.25)
    )
    assert texts(plots.training_curve([], nan, nan)) == ["no loss was recorded"]


def test_the_front_is_what_nothing_beats() -> None:
    figure = plots.learning_forgetting(RUNS)
    front = figure.axes[0].lines[0]
    assert list(front.get_xdata()) == [1.0, 5.0]  # type: ignore[arg-type]
    assert list(front.get_ydata()) == [10.0, 30.0]  # type: ignore[arg-type]


def test_a_point_that_is_pointed_at_says_which_it_is() -> None:
    told = [replace(RUNS[0], hint='lora.r = 4\n<b> & "c"'), RUNS[1]]
    root = ElementTree.fromstring(drawing.svg(plots.learning_forgetting(told)))
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["What was learned against what was forgotten", 'lora.r = 4\n<b> & "c"', "r=8"]


def test_numbers_of_points_that_lie_close_stay_apart() -> None:
    close = [
        Trade(f"run {i}", estimate(0.3 + 0.02 * (i % 4)), estimate(0.05 + 0.01 * (i // 4)))
        for i in range(12)
    ]
    alike = [Trade(f"twin {i}", estimate(0.1), estimate(0.2)) for i in range(2)]
    figure = plots.learning_forgetting(
        [*close, *alike, Trade("far", estimate(-0.2), estimate(0.4))]
    )
    drawing.svg(figure)
    labels = [text for text in figure.axes[0].texts if text.get_text()]
    assert sorted(n for text in labels for n in text.get_text().split(", ")) == sorted(
        map(str, range(1, 16))
    )
    assert "13, 14" in [text.get_text() for text in labels]
    assert len(labels) == 14
    boxes = [
        Text.get_window_extent(text).padded(-1) for text in labels
    ]  # without the line that leads to it
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert figure.axes[0].bbox.padded(2).containsx(box.x0)
        assert figure.axes[0].bbox.padded(2).containsx(box.x1)


def test_long_names_stay_on_the_page() -> None:
    figure = plots.learning_forgetting(RUNS)
    drawing.svg(figure)
    assert figure._supxlabel is not None  # type: ignore[attr-defined]
    box = figure._supxlabel.get_window_extent()  # type: ignore[attr-defined]
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_a_wide_key_stays_on_the_page() -> None:
    figure = plots.by_param(
        "lora.r", {f"{i} long benchmark name " * 3: [(8, estimate(0.1))] for i in range(5)}
    )
    drawing.svg(figure)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_a_run_without_a_target_has_no_place_among_the_trades() -> None:
    nothing = Estimate(nan, nan, nan, nan)
    shown = texts(plots.learning_forgetting([replace(RUNS[0], gain=nothing)]))
    assert shown == ["no run has both a target task and a retained benchmark"]


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ([4, 8, 16, 32], "log", ["4", "8", "16", "32"]),
        ([1e-5, 1e-4, 1e-3], "log", ["1e-05", "0.0001", "0.001"]),
        ([0, 1, 2], "linear", ["0", "1", "2"]),
        ([8], "linear", ["8"]),
        (["q_proj", "all-linear", 3], "linear", ["q_proj", "all-linear", "3"]),
        ([True, False], "linear", ["True", "False"]),
    ],
)
def test_the_axis_of_a_setting_suits_its_values(
    values: list[float | str], scale: str, ticks: list[str]
) -> None:
    figure = plots.by_param(
        "lora.r", {"a": [(value, estimate(0.1)) for value in values], "none": []}
    )
    assert figure.axes[0].get_xscale() == scale
    assert [tick for tick in ticks if tick not in texts(figure)] == []


def test_a_heat_map_writes_every_number_and_leaves_the_rest_blank() -> None:
    cells = {
        "x": [(estimate(-0.123), "forgotten"), None],
        "y": [(estimate(0.0), "retained 2, undecided 1"), (estimate(nan), "")],
    }
    figure = plots.heat_map(["a", "b"], cells)
    shown = texts(figure)
    assert {"x", "y", "a", "b", "−12.3 ↓", "+0.0 ?"} <= set(shown)
    assert "retained 2, undecided 1</title>" in drawing.svg(figure)
    assert len(figure.axes[0].patches) == 2
    assert "nan" not in " ".join(shown)
