"""Graded scores: what may be said of them is what a ratio of likelihoods says, whatever they are."""

from math import sqrt

import numpy as np
import pytest
import scipy
from statsmodels.emplike.descriptive import DescStat

from slimdown.stats.likelihood import Graded
from slimdown.stats.paired import difference
from slimdown.stats.sequential import _Counts

MARGIN = 0.02


def rare(n: int, loss: float, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of one answer in forty most is lost, so that it is so much in the mean; of the others next to nothing changes."""
    before = draw.uniform(0.9, 0.99, n)
    return before, before - np.where(
        draw.random(n) < 1 / 40, 40 * loss, draw.uniform(-1e-3, 1e-3, n)
    )


@pytest.mark.filterwarnings(
    "ignore:DescStatUV.test_mean:FutureWarning"
)  # of what it will return, by the same place
@pytest.mark.parametrize("claim", [-0.1, -0.02, 0.0, 0.05])
def test_the_ratio_of_likelihoods_is_that_of_statsmodels(claim: float) -> None:
    """Which knows no half answers: so twice each of the others, and half of what that makes of the ratio."""
    d = np.clip(np.random.default_rng(0).normal(-0.03, 0.2, 60), -1, 1)
    found = Graded.of(d)
    for p_value, farthest in (
        (found.p_value_above(claim), -1.0),
        (found.p_value_below(claim), 1.0),
    ):
        doubled = DescStat(np.array([*d, *d, farthest])).test_mean(claim)[0]
        assert abs(scipy.special.ndtri(p_value)) == pytest.approx(sqrt(doubled / 2), abs=1e-5)


def test_of_right_and_wrong_answers_it_is_the_one_of_counts() -> None:
    for lost, gained, n in ((3, 10, 100), (5, 2, 32), (40, 20, 1319)):
        differences = np.repeat([-1.0, 1.0, 0.0], [lost, gained, n - lost - gained])
        for claim in (-0.3, -MARGIN, 0.0, 0.1):
            one, other = Graded.of(differences), _Counts(lost, gained, n)
            assert one.p_value_above(claim) == pytest.approx(other.p_value_above(claim), abs=1e-9)
            assert one.p_value_below(claim) == pytest.approx(other.p_value_below(claim), abs=1e-9)


def test_losses_too_rare_to_have_been_seen_are_not_ruled_out() -> None:
    """A t-test rules them out of any number of questions that moved by a hair."""
    before, after = rare(45, 0.0, np.random.default_rng(9))
    assert scipy.stats.ttest_1samp(after - before, -MARGIN).pvalue < 1e-6
    found = difference(before, after)
    assert found.test == "empirical likelihood"
    assert found.equivalence_p_value(MARGIN) > 0.05
    assert found.low < -MARGIN


@pytest.mark.parametrize("n", [32, 100, 600])
def test_rare_large_losses_of_the_margin_are_called_retained_in_five_percent_at_most(
    n: int,
) -> None:
    """Those of which nothing was seen are 44 % of 32 questions, and 8 % of 100."""
    draw = np.random.default_rng(1)
    found = [difference(*rare(n, MARGIN, draw)) for _ in range(300)]
    assert np.mean([one.equivalence_p_value(MARGIN) < 0.05 for one in found]) < 0.05
    assert np.mean([one.low <= -MARGIN <= one.high for one in found]) > 0.93


def test_an_interval_ends_where_the_tests_do_and_shows_what_they_show() -> None:
    draw = np.random.default_rng(2)
    before = draw.beta(2, 2, 300)
    after = np.clip(before - draw.normal(0.03, 0.2, 300), 0, 1)
    found = difference(before, after)
    assert found.p_value_above(found.low) == pytest.approx(0.025, abs=1e-4)
    assert found.p_value_below(found.high) == pytest.approx(0.025, abs=1e-4)
    assert (found.p_value < 0.05) == (found.high < 0)


def test_scores_that_all_changed_alike_are_known_by_their_number() -> None:
    few, many = (difference([0.5] * n, [0.4] * n) for n in (3, 300))
    assert few.p_value > 0.05 > many.p_value
    assert few.low < many.low < -0.1 < many.high < few.high < 1


def test_the_largest_changes_that_can_be_are_no_error() -> None:
    fallen = difference([1.0] * 40 + [0.5], [0.0] * 40 + [0.5])
    assert fallen.p_value < 1e-6
    assert -1 <= fallen.low < fallen.value < fallen.high < 0
    assert Graded.of(np.full(5, -1.0)).p_value_above(-1.0) == 1.0


def test_the_smallest_change_it_names_is_shown_four_times_in_five() -> None:
    draw = np.random.default_rng(3)
    before = np.full(100, 0.5)
    smallest = difference(before, before + draw.normal(0, 0.1, 100)).minimum_detectable_change()
    shown = [
        difference(before, before + draw.normal(-smallest, 0.1, 100)).p_value < 0.05
        for _ in range(300)
    ]
    assert 0.7 <= np.mean(shown) <= 0.9


def test_as_many_questions_as_it_names_decide() -> None:
    draw = np.random.default_rng(4)
    before = np.full(300, 0.5)
    needed = difference(before, before + draw.normal(0, 0.15, 300)).n_to_decide(MARGIN)
    assert needed is not None
    found = [difference([0.5] * needed, 0.5 + draw.normal(0, 0.15, needed)) for _ in range(200)]
    assert (
        0.7
        <= np.mean([d.p_value < 0.05 or d.equivalence_p_value(MARGIN) < 0.05 for d in found])
        <= 0.95
    )
