"""The forgetting rate: an interval that covers the truth even where the base hardly beats chance, or none."""

from math import inf, isnan

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from test_clusters import subjects
from test_paired import simulate

from slimdown.stats.ratio import forgetting_rate


def covers(truth: float, pairs: np.ndarray, chance: float) -> float:
    """How often a rate is not ruled out; None rules out nothing."""
    found = [forgetting_rate(before, after, chance) for before, after in pairs]
    return float(np.mean([rate is None or rate.low <= truth <= rate.high for rate in found]))


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize(
    ("base", "lost", "gained", "chance"),
    [
        (0.27, 0.10, 0.10, 0.25),
        (0.27, 0.12, 0.09, 0.25),
        (0.35, 0.10, 0.05, 0.25),
        (0.35, 0.08, 0.05, 0.0),
    ],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(
    n: int, base: float, lost: float, gained: float, chance: float
) -> None:
    pairs = simulate(n, base, lost, gained, repeats=3000)
    assert 0.93 <= covers((lost - gained) / (base - chance), pairs, chance) <= 0.97


def test_the_interval_is_fiellers_where_the_base_beats_chance() -> None:
    draw = np.random.default_rng(1)
    before, after = draw.beta(8, 2, 50), draw.beta(4, 2, 50)
    found = forgetting_rate(before, after)
    assert found is not None
    for end in (
        found.low,
        found.high,
    ):  # there the paired t of after - (1 - rate) * before is at its quantile
        rest = after - (1 - end) * before
        assert abs(rest.mean()) / (rest.std(ddof=1) / np.sqrt(50)) == pytest.approx(
            2.0096, abs=1e-3
        )


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30),
    st.sampled_from([0.0, 0.25, 0.5]),
)
@settings(max_examples=100, deadline=None)
def test_what_is_not_known_is_never_a_finite_number(
    pairs: list[tuple[bool, bool]], chance: float
) -> None:
    before, after = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    found = forgetting_rate(before, after, chance)
    if found is None:
        return
    if isnan(
        found.low
    ):  # half questions more on either side are certain of it as well: no interval is claimed
        assert set(pairs) == {(True, False)}
        assert chance == 0.5
        assert isnan(found.high)
        assert isnan(found.standard_error)
        return
    assert found.low < found.high
    bounded = abs(found.low) < inf and abs(found.high) < inf
    assert bounded == (not isnan(found.value)) == (not isnan(found.standard_error))
    if bounded:
        assert np.mean(before) > chance
        assert found.low <= found.value <= found.high


def test_a_base_at_chance_rules_out_one_side_or_nothing() -> None:
    base = [1.0] * 27 + [0.0] * 73  # .27 where guessing scores .25
    fallen = forgetting_rate(base, [1.0] * 5 + [0.0] * 95, 0.25)
    assert fallen is not None
    assert fallen.low > 1  # more than all that it had
    assert fallen.high == inf
    risen = forgetting_rate(base, [0.0] * 20 + [1.0] * 80, 0.25)
    assert risen is not None
    assert (risen.low, risen.high < 0) == (-inf, True)
    assert forgetting_rate(base, [0.0] * 3 + [1.0] * 25 + [0.0] * 72, 0.25) is None
    assert forgetting_rate([0.0] * 100, [1.0] + [0.0] * 99) is None
    below = [1.0] * 5 + [0.0] * 95
    assert forgetting_rate(below, base, 0.25) is None  # a base below chance has nothing above it


@pytest.mark.parametrize("clusters", [None, subjects((8,) * 5)])
def test_nothing_changed_is_not_certainty(clusters: list[str] | None) -> None:
    found = forgetting_rate([1.0] * 40, [1.0] * 40, clusters=clusters)
    assert found is not None
    assert found.value == 0
    assert found.low < -0.02 < 0.02 < found.high
    assert found.standard_error > 0


def test_what_subjects_have_in_common_widens_the_interval() -> None:
    draw = np.random.default_rng(2)
    lost = np.repeat([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 50)
    before = (draw.random(300) < 0.8).astype(float)
    after = before * (draw.random(300) > lost)
    alone, grouped = (
        forgetting_rate(before, after),
        forgetting_rate(before, after, 0.0, subjects((50,) * 6)),
    )
    assert alone is not None
    assert grouped is not None
    assert grouped.value == alone.value
    assert grouped.low < alone.low < alone.high < grouped.high
    assert grouped.standard_error > alone.standard_error


def test_graded_scores_are_taken_in_pairs() -> None:
    draw = np.random.default_rng(7)
    before = draw.uniform(0.4, 0.8, 300)
    found = forgetting_rate(before, 0.9 * before + draw.normal(0, 0.001, 300))
    assert found is not None
    assert found.value == pytest.approx(0.1, abs=0.001)
    assert found.high - found.low < 0.001  # every question lost nearly the same share
    unchanged = forgetting_rate(before, before)
    assert unchanged is not None
    assert isnan(unchanged.low)
