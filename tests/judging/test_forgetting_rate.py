"""The forgetting rate: an interval that covers the truth of weak bases and at a collapse."""

from math import isfinite, isnan

import numpy as np
import pytest
from builders import draw_scores, slow
from hypothesis import given, settings, strategies as st

from slimdown.judging.forgetting_rate import forgetting_rate
from slimdown.stats.estimates import Sampling


def halves(n_right: int, n: int = 100) -> np.ndarray:
    return np.repeat([1.0, 0.0], [n_right, n - n_right])


@pytest.mark.parametrize(
    ("n", "base", "lost", "gained"),
    [
        (100, 0.03, 0.02, 0.01),
        # the first of these collapses
        *slow((100, 0.35, 0.32, 0.0), (200, 0.6, 0.4, 0.02), (300, 0.30, 0.1, 0.1)),
    ],
)
def test_the_interval_covers_the_truth(n: int, base: float, lost: float, gained: float) -> None:
    truth = (lost - gained) / base
    rates = [forgetting_rate(*draw_scores(n, base, lost, gained, seed)) for seed in range(300)]
    covered = [rate.low <= truth <= rate.high for rate in rates if rate]
    assert sum(covered) >= 0.92 * len(covered)
    assert len(covered) == 300 or base < 0.05


def find_fiellers_t(n: int) -> list[float]:
    """The t of after - (1 - rate) before at both ends of the interval; Fieller's has 1.96 there."""
    draw = np.random.default_rng(1)
    before, after = draw.beta(8, 2, n), draw.beta(4, 2, n)
    rate = forgetting_rate(before, after)
    rests = [after - (1 - end) * before for end in (rate.low, rate.high)]
    return [abs(rest.mean()) / (rest.std(ddof=1) / np.sqrt(n)) for rest in rests]


def test_where_the_base_is_far_above_nothing_it_is_near_fiellers() -> None:
    few, some, many = (find_fiellers_t(n) for n in (50, 200, 2000))
    assert many == pytest.approx([1.96, 1.96], abs=0.2)
    assert few > some > many  # the answers that are added weigh more among few
    assert few[1] > some[1] > many[1]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_what_is_not_known_is_never_a_finite_number(pairs: list[tuple[bool, bool]]) -> None:
    before, after = (np.array([float(pair[i]) for pair in pairs]) for i in (0, 1))
    rate = forgetting_rate(before, after)
    assert (rate is None) == (before.mean() == 0)
    if rate is not None:
        assert rate.low < rate.high
        assert isfinite(rate.low)
        assert rate.low <= rate.value <= rate.high <= 1


def test_no_rate_is_above_all() -> None:
    collapse = forgetting_rate(halves(60), halves(1))
    assert 0.85 < collapse.low < collapse.value < collapse.high <= 1


def test_nothing_changed_is_not_certainty() -> None:
    rate = forgetting_rate(halves(40, 40), halves(40, 40))
    assert rate.value == 0
    assert rate.low < -0.02 < 0.02 < rate.high


def test_weights_and_looks_are_those_of_the_other_estimates() -> None:
    before, after = draw_scores(400, 0.6, 0.3, 0.06, 0)
    whole = forgetting_rate(before, after)
    looked = forgetting_rate(before[:63], after[:63], Sampling(None, (32, 45, 63), 400))
    weighted = forgetting_rate(before, after, Sampling(np.tile([2.0, 0.0], 200)))
    half = forgetting_rate(before[::2], after[::2])
    assert looked.low < whole.low < whole.high < looked.high  # type: ignore[union-attr]
    assert isnan(looked.standard_error)  # type: ignore[union-attr]
    assert weighted.value == pytest.approx(half.value)  # type: ignore[union-attr]
