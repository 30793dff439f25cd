"""Scales of an adapter: intervals that hold for all of them, and the choice within a budget."""

import pytest
from builders import judge_scores, make_scores

from slimdown.comparison.scaling import ScaledFindings, build_simultaneous_curves, choose_scale
from slimdown.utils.errors import ConfigError

LOST = {0.25: 2, 0.5: 40, 0.75: 10, 1.0: 90}  # of 1,000 questions


@pytest.fixture
def points() -> list[ScaledFindings]:
    counts = {scale: (800 - n, n, 0, 200) for scale, n in LOST.items()}
    return [ScaledFindings(s, judge_scores(*make_scores(*c))) for s, c in counts.items()]


def test_intervals_hold_for_all_scales_at_once(points: list[ScaledFindings]) -> None:
    [curve] = build_simultaneous_curves(points).values()
    assert [scale for scale, _ in curve] == list(LOST)
    for (_, wide), point in zip(curve, points, strict=True):
        [benchmark] = point.findings.benchmarks.values()
        plain = benchmark.primary.difference
        assert wide.low < plain.low < plain.value == wide.value < plain.high < wide.high
        assert (wide.low, wide.high) == plain.interval(0.05 / 4)


@pytest.mark.parametrize(
    # The loss at 0.5 is above that at 0.75, which is never reached where 0.5 is not within.
    ("budget", "scale"),
    [(0.005, None), (0.02, 0.25), (0.04, 0.25), (0.06, 0.75), (0.5, 1)],
)
def test_the_largest_scale_that_is_shown_to_be_within_is_chosen_from_below(
    points: list[ScaledFindings], budget: float, scale: float | None
) -> None:
    chosen = choose_scale(points, {"": budget})
    assert (chosen.scale if chosen else None) == scale


@pytest.mark.heavy
@pytest.mark.parametrize("text", ["", "a", "0", "-1,1", "3", "nan", "0.5,inf"])
def test_odd_scales_are_refused(text: str) -> None:
    from slimdown.commands.scale import read_scales

    with pytest.raises(ConfigError, match="give numbers from 0 to 2"):
        read_scales(text)
