"""Groups are compared at the point where all have learned equally, by curves over the scale."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import make_benchmark, make_evaluation

from slimdown.comparison.equal_learning import LearningCurve, build_curve, compare_at_equal_learning
from slimdown.comparison.scaling import ScaledFindings
from slimdown.config.schema import Role
from slimdown.judging.findings import judge
from slimdown.utils.errors import ConfigError

N = 200


def make_points(steps: list[tuple[float, int, int]]) -> list[ScaledFindings]:
    """Points of a scale, so many answers gained in the target, so many lost in the retained."""
    base = make_evaluation(
        target=make_benchmark([0.0] * N, role=Role.target), kept=make_benchmark([1.0] * N)
    )
    points = []
    for scale, gained, lost in steps:
        tuned = make_evaluation(
            target=make_benchmark([1.0] * gained + [0.0] * (N - gained), role=Role.target),
            kept=make_benchmark([0.0] * lost + [1.0] * (N - lost)),
        )
        points.append(ScaledFindings(scale, judge(base, tuned)))
    return points


def test_what_lies_between_two_scales_is_interpolated() -> None:
    curve = build_curve(make_points([(1.0, 120, 60), (0.5, 40, 10)]))
    assert curve.learned.tolist() == [0, 0.2, 0.6]
    scale, changes = curve.at(0.4)
    assert scale == pytest.approx(0.75)
    assert changes["kept"][0].mean() == pytest.approx(-(10 + 60) / 2 / N)
    assert curve.at(0.1)[0] == pytest.approx(0.25)
    assert curve.at(0.6)[0] == 1


def test_the_first_scale_that_teaches_as_much_counts() -> None:
    curve = build_curve(make_points([(0.2, 0, 1), (0.5, 40, 10), (1.0, 30, 60), (1.5, 90, 80)]))
    assert curve.at(0.2)[0] == 0.5
    assert curve.at(0.15)[0] == pytest.approx(0.425)
    assert curve.at(0.45)[0] == 1.5


def test_a_level_far_from_every_measured_scale_is_to_be_measured() -> None:
    points = make_points([(0.5, 100, 10), (1.0, 160, 60)])
    curve = build_curve(points)
    assert curve.find_scale_to_measure(0.8) is None
    assert curve.find_scale_to_measure(0.51) is None  # half a standard error is 0.018
    assert curve.find_scale_to_measure(0.53) == pytest.approx(0.55)
    assert curve.find_scale_to_measure(0.2) == pytest.approx(0.2)  # the base is no measured scale
    nearer = build_curve([*points, *make_points([(0.2, 42, 3)])])
    assert nearer.find_scale_to_measure(0.2) is None


def test_the_noise_of_the_target_is_part_of_what_was_lost() -> None:
    """Three runs that answer alike: only other questions, of either benchmark, would differ."""
    curve = build_curve(make_points([(0.5, 80, 0), (1.0, 120, 60)]))
    _, [group] = compare_at_equal_learning({"none": dict.fromkeys("012", curve)})
    slope, learned, lost = 60 / 40, 0.6, 0.3
    variance = (lost * (1 - lost) + slope**2 * learned * (1 - learned)) / (N - 1)
    assert group.changes["kept"].question_error == pytest.approx(np.sqrt(variance))
    _, (_, alike) = compare_at_equal_learning({v: dict.fromkeys("012", curve) for v in "ab"})
    # what both groups owe to the same questions is no difference between them
    assert alike.from_first["kept"].value == 0
    assert np.isnan(alike.from_first["kept"].low)


def test_without_a_target_nothing_says_how_much_was_learned() -> None:
    kept = make_evaluation(kept=make_benchmark([1.0, 0.0] * 20))
    with pytest.raises(ConfigError, match="needs a target task"):
        build_curve([ScaledFindings(1.0, judge(kept, kept))])


def test_groups_meet_at_the_most_that_every_run_learned() -> None:
    greedy = [make_points([(0.5, 60, 30), (1.0, 160, 100 + i)]) for i in range(3)]
    gentle = [make_points([(0.5, 40, 2), (1.0, 80 + i, 4)]) for i in range(3)]
    groups = {
        "none": {str(i): build_curve(p) for i, p in enumerate(greedy)},
        "kl": {str(i): build_curve(p) for i, p in enumerate(gentle)},
    }
    level, (none, kl) = compare_at_equal_learning(groups)
    assert level == 0.4
    assert (none.n_runs, kl.n_runs) == (3, 3)
    assert kl.scale == pytest.approx(1, abs=0.02)
    assert none.scale == pytest.approx(0.6, abs=0.01)
    expected = -(30 + 0.2 * (71)) / N
    assert none.changes["kept"].value == pytest.approx(expected, abs=1e-3)
    assert none.from_first == {}
    difference = kl.from_first["kept"]
    assert difference.value == pytest.approx(kl.changes["kept"].value - none.changes["kept"].value)
    assert 0 < difference.low < difference.value < difference.high
    one: dict[str, Any] = {"none": {"0": groups["none"]["0"]}, "kl": groups["kl"]}
    _, (alone, others) = compare_at_equal_learning(one)
    assert np.isnan(alone.changes["kept"].low)
    assert others.from_first == {}


def test_what_learned_nothing_or_answered_other_questions_cannot_tell() -> None:
    curve = build_curve(make_points([(1.0, 80, 4)]))
    nothing = build_curve(make_points([(1.0, 0, 4)]))
    assert compare_at_equal_learning({"a": {"0": curve}, "b": {"0": nothing}}) == (0.0, [])
    other: LearningCurve = replace(curve, question_hashes={"kept": "x"})
    assert compare_at_equal_learning({"a": {"0": curve}, "b": {"0": other}}) == (0.0, [])
    assert np.isfinite(curve.retained["kept"]).all()
