"""The test and its interval against independent implementations, and what few answers show."""

from itertools import combinations
from math import nan

import numpy as np
import pytest
from builders import draw_scores, make_scores
from hypothesis import given, settings, strategies as st
from scipy import optimize
from scipy.special import ndtr, xlogy
from statsmodels.emplike.descriptive import DescStatUV
from statsmodels.stats.contingency_tables import mcnemar

from slimdown.stats.estimates import Difference, Sampling, compare_scores, estimate_mean, holm
from slimdown.stats.likelihood import likelihood_p_values

ZERO_ONE = st.sampled_from([0.0, 1.0])
PAIRS = st.lists(st.tuples(ZERO_ONE, ZERO_ONE), min_size=2, max_size=60)


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_mcnemars_column_agrees_with_statsmodels(pairs: list[tuple[float, float]]) -> None:
    before, after = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    table = [
        [int((before * after).sum()), int((before > after).sum())],
        [int((before < after).sum()), 0],
    ]
    d = compare_scores(before, after)
    assert d.mcnemar_p_value == pytest.approx(mcnemar(table, exact=True).pvalue)


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(7, 2, 60), (1, 2, 300), (30, 1, 90), (3, 9, 40)]
)
@pytest.mark.parametrize("change", [0.0, -0.02, 0.05, -0.3])
def test_it_is_a_likelihood_ratio_of_counts(lost: int, gained: int, n: int, change: float) -> None:
    """Maximized numerically over the chance of a loss; a part of an answer more is lost."""
    added = max((lost + gained) / n, 0.5 / (1 + min(lost, gained) / 25) if change < 0 else 0.4)
    if change < -0.1:
        added = 1.0
    counts = np.array([lost + added, n - lost - gained, gained], dtype=float)

    def nats(chance_of_loss: float) -> float:
        shares = np.array(
            [chance_of_loss, 1 - 2 * chance_of_loss - change, chance_of_loss + change]
        )
        return -float(xlogy(counts, np.maximum(shares, 1e-300)).sum())

    bounds = (max(0.0, -change), (1 - change) / 2)
    least = optimize.minimize_scalar(
        nats, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    )
    best = float(xlogy(counts, counts / counts.sum()).sum())
    root = np.sqrt(2 * max(0.0, best + least.fun))
    side = np.sign(gained - lost - added - (n + added) * change)
    before, after = make_scores(0, lost, gained, n - lost - gained)
    p_value = compare_scores(before, after).p_value_above(change)
    assert p_value == pytest.approx(ndtr(-side * root), rel=1e-4, abs=1e-9)


def test_of_graded_scores_it_is_statsmodels_empirical_likelihood() -> None:
    draw = np.random.default_rng(4)
    excess = draw.normal(0.05, 0.2, 80)
    with_answer = np.append(excess, -1.0)
    log_ratio, _ = DescStatUV(with_answer).test_mean(0.0, result_object=False)
    p_value = likelihood_p_values(excess, np.ones(80), np.array([-1.0]))[0]
    assert p_value == pytest.approx(ndtr(-np.sqrt(log_ratio)), rel=1e-4)


def test_a_small_part_of_an_answer_is_weighed_exactly() -> None:
    """Three numbers of 1 and a fifth of -0.5; under a mean of 0, their shares are 1/3 and 2/3."""
    counts = np.array([3, 0.2])
    log_ratio = float(xlogy(counts, counts / 3.2 / np.array([1 / 3, 2 / 3])).sum())
    p_value = likelihood_p_values(np.ones(1), np.array([3.0]), -0.5, added=0.2)[0]
    assert p_value == pytest.approx(ndtr(-np.sqrt(2 * log_ratio)), rel=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_holms_correction_is_bonferronis_closed(p_values: list[float]) -> None:
    """A claim holds where every set of hypotheses with it is rejected (Marcus et al. 1976)."""
    numbers = range(len(p_values))
    sets = [set(c) for size in numbers for c in combinations(numbers, size + 1)]
    bonferroni = [min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets]
    closed = [max(p for s, p in zip(sets, bonferroni, strict=True) if i in s) for i in numbers]
    assert holm(p_values) == pytest.approx(closed)


@pytest.mark.parametrize("scores", [[1.0], [0.0], [1.0] * 5, [0.0] * 30, [0.5] * 30])
def test_no_change_of_a_few_questions_is_not_certainty(scores: list[float]) -> None:
    d = compare_scores(scores, scores)
    assert (d.value, d.p_value) == (0, 1)
    assert -1 < d.low < -0.05 < 0.05 < d.high < 1
    assert d.equivalence_p_value(0.02) > 0.05


@pytest.mark.parametrize("scores", [[nan, 1.0], [0.0, 100.0], [-0.1, 0.5], []])
def test_scores_that_are_no_shares_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match=r"0 and 1|no question"):
        compare_scores(scores, scores)


def test_groups_weigh_as_the_harness_weighs_them_in_estimate_and_interval() -> None:
    """Two tasks, each half of the score: 100 questions that lost all, and 300 that lost none."""
    before, after = [1.0] * 400, [0.0] * 100 + [1.0] * 300
    weights = np.repeat([400 / 2 / 100, 400 / 2 / 300], [100, 300])
    plain = compare_scores(before, after)
    weighted = compare_scores(before, after, Sampling(weights=weights, n_subjects=2))
    assert plain.value == -0.25
    assert weighted.value == pytest.approx(-0.5)
    assert weighted.low < -0.5 < weighted.high < plain.high
    assert estimate_mean(after, Sampling(weights=weights)).value == pytest.approx(0.5)


def test_clusters_are_observations_that_weigh_alike_whatever_their_size() -> None:
    random = np.random.default_rng(5)
    sizes = [1, 2, 3, 8] * 3
    clusters = np.repeat(np.arange(12.0), sizes)
    scores = (random.random(len(clusters)) < 0.3 + 0.4 * (clusters % 2)).astype(float)
    means = [float(scores[clusters == cluster].mean()) for cluster in range(12)]
    estimate = estimate_mean(scores, Sampling(clusters=clusters))
    assert estimate.value == pytest.approx(np.mean(means))
    assert estimate.standard_error == pytest.approx(np.std(means, ddof=1) / np.sqrt(12))
    expected = estimate_mean(means)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("n_copies", [2, 5, 10])
def test_one_copied_question_makes_an_interval_hardly_wider(n_copies: int) -> None:
    before, after = make_scores(0, 11, 9, 980)
    documents = np.append(np.arange(1000.0), np.zeros(n_copies - 1))
    copied = [np.array(x)[documents.astype(int)] for x in (before, after)]
    alone = compare_scores(before, after)
    found = compare_scores(*copied, Sampling(clusters=documents))
    assert found.value == pytest.approx(alone.value)
    for alpha in (0.05, 0.0125):
        for find_interval in (Difference.interval, Difference.margin_interval):
            narrow, wide = (np.ptp(find_interval(d, alpha)) for d in (alone, found))
            assert wide <= 1.05 * narrow


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    drawn = [draw_scores(100, 0.6, 0.2, 0.07, seed) for seed in range(300)]
    changes = [compare_scores(before, after) for before, after in drawn]
    means = [estimate_mean(before) for before, _ in drawn]
    for estimates, truth in ((changes, -0.13), (means, 0.6)):
        assert 0.93 <= np.mean([e.low <= truth <= e.high for e in estimates]) <= 0.985
