"""Scales of an adapter: intervals that hold for all of them, and the choice within a budget."""

from dataclasses import replace

import pytest
from builders import judge_scores, make_scores

from slimdown.comparison.scaling import ScaledFindings, build_simultaneous_curves, choose_scale
from slimdown.judging.budgets import Outcome, can_show_budget
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
    assert chosen.point.scale == (scale or 0.25)
    assert (chosen.gate.outcome is Outcome.within) is (scale is not None)


def test_a_smallest_scale_that_is_shown_to_be_beyond_fails(points: list[ScaledFindings]) -> None:
    lost = [replace(point, scale=2 - point.scale) for point in points]  # 90 lost at the smallest
    chosen = choose_scale(lost, {"": 0.02})
    assert (chosen.point.scale, chosen.gate.outcome) == (1.0, Outcome.beyond)


@pytest.mark.parametrize(
    ("n", "lost", "gained", "can"),
    [(150, 20, 4, False), (300, 40, 10, False), (2000, 100, 40, True), (1000, 0, 0, True)],
)
def test_a_budget_can_be_shown_where_a_tenth_of_the_changes_would_be_within(
    n: int, lost: int, gained: int, can: bool
) -> None:
    findings = judge_scores(*make_scores(n - lost - gained, lost, gained, 0))
    assert can_show_budget(findings, 0.02) is can
    tenth = judge_scores(*make_scores(n - (lost + gained) // 10, lost // 10, gained // 10, 0))
    gate = choose_scale([ScaledFindings(0.1, tenth)], {"": 0.02}).gate
    assert (gate.outcome is Outcome.within) is can


@pytest.mark.heavy
@pytest.mark.parametrize("text", ["", "a", "0", "-1,1", "3", "nan", "0.5,inf"])
def test_odd_scales_are_refused(text: str) -> None:
    from slimdown.commands.scale import read_scales

    with pytest.raises(ConfigError, match="from 0 to 2"):
        read_scales(text)
