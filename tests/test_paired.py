"""The statistics against independent implementations, and by simulation against what they promise."""

from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from slimdown.stats.paired import difference, holm, mean

SCORES = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=60
)


def simulate(
    n: int, base: float, lost: float, gained: float, repeats: int, seed: int = 1
) -> np.ndarray:
    """[repeats, 2, n] scores: a share `base` right before, of all questions `lost` and `gained` afterwards."""
    draw = np.random.default_rng(seed)
    cells = draw.choice(4, size=(repeats, n), p=[base - lost, lost, gained, 1 - base - gained])
    return np.stack(
        [(cells < 2).astype(float), ((cells == 0) | (cells == 2)).astype(float)], axis=1
    )


@given(SCORES)
@settings(max_examples=60, deadline=None)
def test_mcnemar_and_the_t_test_agree_with_statsmodels_and_scipy(
    pairs: list[tuple[float, float]],
) -> None:
    before, after = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    found = difference(before, after)
    table = [
        [int((before * after).sum()), int((before > after).sum())],
        [int((before < after).sum()), 0],
    ]
    assert found.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    if (before - after).std() > 0:
        assert found.t_test_p_value == pytest.approx(stats.ttest_rel(before, after).pvalue)


@given(SCORES)
@settings(max_examples=60, deadline=None)
def test_wilsons_interval_agrees_with_statsmodels(pairs: list[tuple[float, float]]) -> None:
    scores = [before for before, _ in pairs]
    low, high = proportion_confint(sum(scores), len(scores), method="wilson")
    assert (mean(scores).low, mean(scores).high) == pytest.approx((low, high), abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_holms_correction_agrees_with_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def test_a_test_that_was_not_possible_leaves_the_others_alone() -> None:
    adjusted = holm([0.01, nan, 0.02])
    assert adjusted[0] == pytest.approx(0.02)
    assert isnan(adjusted[1])


def test_equivalence_of_scores_without_bounds_agrees_with_statsmodels() -> None:
    draw = np.random.default_rng(3)
    before = draw.normal(5, 0.1, 200)
    after = before + draw.normal(-0.004, 0.05, 200)
    found = difference(before, after)
    assert found.test == "paired t"
    assert found.equivalence_p_value(0.02) == pytest.approx(
        ttost_paired(after, before, -0.02, 0.02)[0]
    )
    interval = stats.ttest_rel(after, before).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_false_alarms_stay_below_five_percent() -> None:
    for n, base, changed in ((100, 0.47, 0.10), (1319, 0.35, 0.05)):
        pairs = simulate(n, base, changed, changed, repeats=2000)
        alarms = np.mean([difference(before, after).p_value < 0.05 for before, after in pairs])
        assert alarms <= 0.05, (n, alarms)


@pytest.mark.parametrize(
    ("n", "base", "lost", "gained"),
    [(100, 0.47, 0.2, 0.07), (200, 0.37, 0.05, 0.05), (1319, 0.35, 0.08, 0.05)],
)
def test_intervals_cover_the_truth_as_often_as_they_say(
    n: int, base: float, lost: float, gained: float
) -> None:
    pairs = simulate(n, base, lost, gained, repeats=2000)
    covered = np.mean([(d := difference(*pair)).low <= gained - lost <= d.high for pair in pairs])
    assert 0.93 <= covered <= 0.97


def test_pairing_sees_a_loss_that_independent_scores_miss() -> None:
    gained = 0.05 * 0.65  # of the wrong answers one in twenty becomes right
    pairs = simulate(1319, 0.35, lost=gained + 0.03, gained=gained, repeats=1000)
    paired_power = np.mean([difference(before, after).p_value < 0.05 for before, after in pairs])
    unpaired_power = np.mean(
        [
            stats.ttest_ind(after, before).pvalue < 0.05 for before, after in pairs
        ]  # as if of two sets of questions
    )
    assert 0.90 <= paired_power <= 0.96
    assert 0.17 <= unpaired_power <= 0.27


@pytest.mark.parametrize(
    ("n", "margin"), [(20, 0.3), (200, 0.02), (300, 0.02), (400, 0.01), (1000, 0.02)]
)
def test_a_loss_as_large_as_the_margin_is_rarely_ruled_out(n: int, margin: float) -> None:
    # exactly: so many lost, none gained, which is what fine-tuning does most
    lost = np.arange(n + 1)
    ruled_out = [
        difference([1.0] * n, [0.0] * k + [1.0] * (n - k)).p_value_above(-margin) < 0.05
        for k in range(n + 1)
    ]
    assert stats.binom.pmf(lost, n, margin)[ruled_out].sum() <= 0.05


def test_equal_scores_without_any_spread_are_not_certainty() -> None:
    clusters = [f"subject{i}" for i in range(10)]
    for before, groups in (([1.0] * 10, clusters), ([0.5, 0.5], None), ([0.5] * 10, clusters)):
        found = difference(before, before, groups)
        assert not found.equivalence_p_value(0.02) < 0.05


def test_no_change_of_a_few_questions_is_not_certainty() -> None:
    same = difference([1.0] * 5, [1.0] * 5)
    assert same.value == 0
    assert same.low < -0.2
    assert same.equivalence_p_value(0.02) > 0.05


def test_one_question_scored_without_bounds_says_nothing() -> None:
    found = difference([5], [4])
    assert isnan(found.p_value)
    assert isnan(found.equivalence_p_value(0.02))
    assert found.n_to_decide(0.02) is None
