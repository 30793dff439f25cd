"""Questions that come in subjects: what a mean over them knows, and of what."""

from itertools import pairwise
from math import isnan, sqrt

import numpy as np
import pytest
from scipy import stats

from slimdown.stats.clusters import Drawn
from slimdown.stats.paired import difference, mean

# questions of MMLU's 13 subjects of humanities: the largest has a third of them
HUMANITIES = (126, 165, 204, 237, 121, 108, 163, 346, 895, 311, 324, 1534, 171)


def subjects(sizes: tuple[int, ...]) -> list[str]:
    return [f"subject{i:02}" for i, size in enumerate(sizes) for _ in range(size)]


def changes(
    sizes: tuple[int, ...], spread: float, repeats: int, seed: int, shift: float = 0.0
) -> list[np.ndarray]:
    """Graded differences of questions of subjects whose true changes scatter around `shift`."""
    draw = np.random.default_rng(seed)
    n, at = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    return [
        draw.normal(shift, spread, len(sizes))[at] + draw.normal(0, 0.3, n) for _ in range(repeats)
    ]


@pytest.mark.parametrize(
    "sizes", [HUMANITIES, HUMANITIES[:9], (30,) * 5, (20, 40, 80, 160, 320, 640)]
)
def test_subjects_of_unequal_size_give_no_false_alarms(sizes: tuple[int, ...]) -> None:
    drawn = Drawn.of(sum(sizes), subjects(sizes))
    errors = stats.t(drawn.degrees_of_freedom).isf(0.025)
    alarms = [
        abs(d.mean()) > errors * sqrt(drawn.variance(d)) for d in changes(sizes, 0.1, 2000, 1)
    ]
    assert np.mean(alarms) <= 0.06


def test_subjects_of_one_size_are_students_t_of_their_means() -> None:
    (d,) = changes((40,) * 8, 0.1, 1, 2)
    found = difference(np.zeros(320), d, subjects((40,) * 8))
    plain = stats.ttest_1samp(d.reshape(8, 40).mean(axis=1), 0)
    assert (found.p_value, found.degrees_of_freedom) == (
        pytest.approx(plain.pvalue),
        pytest.approx(7),
    )
    assert (found.low, found.high) == pytest.approx(tuple(plain.confidence_interval()))


def test_the_variance_is_that_of_leaving_each_subject_out() -> None:
    (d,) = changes(HUMANITIES, 0.1, 1, 3)
    names = np.array(subjects(HUMANITIES))
    without = np.array([d[names != name].mean() for name in np.unique(names)])
    expected = 12 / 13 * ((without - d.mean()) ** 2).sum()
    assert Drawn.of(len(d), list(names)).variance(d) == pytest.approx(expected)


def test_one_subject_more_or_less_is_no_jump() -> None:
    (d,) = changes((60,) * 12, 0.05, 1, 4, shift=-0.03)
    names = subjects((60,) * 12)
    errors = [
        difference(np.zeros(60 * k), d[: 60 * k], names[: 60 * k]).standard_error
        for k in range(5, 13)
    ]
    assert all(0.7 < later / earlier < 1.3 for earlier, later in pairwise(errors))


def test_from_five_subjects_on_it_is_of_subjects_and_below_of_these() -> None:
    before, after = [1.0, 0.0] * 30, [0.0, 1.0] * 30
    few = difference(before, after, [f"s{i % 4}" for i in range(60)])
    assert (few.test, few.population) == ("exact McNemar", "these 4 subjects")
    many = difference(before, after, [f"s{i % 5}" for i in range(60)])
    assert (many.test, many.population) == ("clustered t", "subjects like these 5")
    assert difference(before, after).population == difference(before, after, ["s"] * 60).population
    assert difference(before, after).population == "questions like these"


@pytest.mark.parametrize("sizes", [(8,) * 5, HUMANITIES])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_or_all_wrong_is_not_certainty(sizes: tuple[int, ...], right: float) -> None:
    scores, names = [right] * sum(sizes), subjects(sizes)
    found, alone = mean(scores, names), mean(scores)
    assert 0 <= found.low < found.high <= 1
    assert found.high - found.low >= alone.high - alone.low
    changed = difference(scores, scores, names)
    assert -1 <= changed.low < 0 < changed.high <= 1


@pytest.mark.parametrize("graded", [False, True])
def test_no_interval_leaves_what_can_be(graded: bool) -> None:
    draw = np.random.default_rng(5)
    names = subjects((2, 2, 2, 2, 50))
    for _ in range(200):
        x, y = (
            draw.beta(0.2, 0.2, 58) if graded else draw.integers(0, 2, 58).astype(float)
            for _ in range(2)
        )
        y[:50] = x[:50] if draw.random() < 0.5 else 1 - x[:50]
        for groups in (names, None):
            level, changed = mean(x, groups), difference(x, y, groups)
            assert 0 <= level.low <= level.value <= level.high <= 1
            assert -1 <= changed.low <= changed.value <= changed.high <= 1


def test_the_mean_of_clustered_answers_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(6)
    names, at = subjects((40,) * 8), np.repeat(np.arange(8), 40)
    shares = draw.beta(6, 2, (1500, 8))  # around .75
    found = [mean((draw.random(320) < share[at]).astype(float), names) for share in shares]
    assert 0.93 <= np.mean([one.low <= 0.75 <= one.high for one in found]) <= 0.97


def test_graded_scores_without_spread_say_nothing() -> None:
    assert isnan(mean([0.5] * 20, subjects((4,) * 5)).low)
    assert isnan(mean([0.3] * 20).low)
    assert isnan(difference([0.3] * 20, [0.2] * 20, subjects((4,) * 5)).p_value)
