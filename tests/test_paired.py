"""The statistics against independent implementations, and by simulation against what they promise."""

from math import isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from slimdown import paired
from slimdown.paired import difference, forgetting_rate, holm, mean, seed_noise

SCORES = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=60)


def simulate(n: int, base: float, lost: float, gained: float, repeats: int, seed: int = 1) -> np.ndarray:
    """[repeats, 2, n] scores: a share `base` right before, of all questions `lost` and `gained` afterwards."""
    draw = np.random.default_rng(seed)
    cells = draw.choice(4, size=(repeats, n), p=[base - lost, lost, gained, 1 - base - gained])
    return np.stack([(cells < 2).astype(float), ((cells == 0) | (cells == 2)).astype(float)], axis=1)


@given(SCORES)
@settings(max_examples=60, deadline=None)
def test_mcnemar_and_the_t_test_agree_with_statsmodels_and_scipy(pairs: list[tuple[float, float]]) -> None:
    before, after = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    found = difference(before, after)
    table = [[int((before * after).sum()), int((before > after).sum())], [int((before < after).sum()), 0]]
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


def test_equivalence_of_graded_scores_agrees_with_statsmodels() -> None:
    draw = np.random.default_rng(3)
    before = draw.normal(0.5, 0.1, 200)
    after = before + draw.normal(-0.004, 0.05, 200)
    found = difference(before, after)
    assert found.test == "paired t"
    assert found.equivalence_p_value(0.02) == pytest.approx(ttost_paired(after, before, -0.02, 0.02)[0])
    interval = stats.ttest_rel(after, before).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_clusters_widen_what_their_questions_have_in_common() -> None:
    draw = np.random.default_rng(4)
    groups = np.repeat([f"subject{i}" for i in range(30)], 20)
    subject = np.repeat(draw.normal(0, 0.3, 30), 20)
    before = (draw.random(600) < 0.6).astype(float)
    after = (draw.random(600) < np.clip(0.6 + subject, 0, 1)).astype(float)
    alone, grouped = difference(before, after), difference(before, after, list(groups))
    assert grouped.test == "clustered t"
    assert grouped.degrees_of_freedom == 29
    assert grouped.standard_error > 1.3 * alone.standard_error
    # one question a cluster is the ordinary standard error
    each = difference(before, after, [str(i) for i in range(600)])
    assert each.standard_error == pytest.approx((after - before).std(ddof=1) / sqrt(600))


def test_a_few_groups_are_no_sample_of_groups() -> None:
    before, after = [1.0, 0.0] * 20, [0.0, 1.0] * 20
    assert difference(before, after, ["a", "b"] * 20) == difference(before, after)


def test_false_alarms_stay_below_five_percent() -> None:
    for n, base, changed in ((100, 0.47, 0.10), (1319, 0.35, 0.05)):
        pairs = simulate(n, base, changed, changed, repeats=2000)
        alarms = np.mean([difference(before, after).p_value < 0.05 for before, after in pairs])
        assert alarms <= 0.05, (n, alarms)


@pytest.mark.parametrize(
    ("n", "base", "lost", "gained"), [(100, 0.47, 0.2, 0.07), (200, 0.37, 0.05, 0.05), (1319, 0.35, 0.08, 0.05)]
)
def test_intervals_cover_the_truth_as_often_as_they_say(n: int, base: float, lost: float, gained: float) -> None:
    pairs = simulate(n, base, lost, gained, repeats=2000)
    covered = np.mean([(d := difference(*pair)).low <= gained - lost <= d.high for pair in pairs])
    assert 0.93 <= covered <= 0.97


def test_the_forgetting_rates_interval_covers_the_truth_as_often_as_it_says() -> None:
    pairs = simulate(1319, 0.35, 0.08, 0.05, repeats=600)
    found = [forgetting_rate(before, after) for before, after in pairs]
    covered = np.mean([rate is not None and rate.low <= 0.03 / 0.35 <= rate.high for rate in found])
    assert 0.93 <= covered <= 0.97


def test_pairing_sees_a_loss_that_independent_scores_miss() -> None:
    gained = 0.05 * 0.65  # of the wrong answers one in twenty becomes right
    pairs = simulate(1319, 0.35, lost=gained + 0.03, gained=gained, repeats=1000)
    paired_power = np.mean([difference(before, after).p_value < 0.05 for before, after in pairs])
    unpaired_power = np.mean(
        [stats.ttest_ind(after, before).pvalue < 0.05 for before, after in pairs]  # as if of two sets of questions
    )
    assert 0.90 <= paired_power <= 0.96
    assert 0.17 <= unpaired_power <= 0.27


def test_the_minimum_detectable_change_is_detected_four_times_in_five() -> None:
    (before, after), *_ = simulate(1000, 0.5, 0.06, 0.06, repeats=1)
    smallest = difference(before, after).minimum_detectable_change()
    pairs = simulate(1000, 0.5, 0.06 + smallest / 2, 0.06 - smallest / 2, repeats=1000)
    power = np.mean([difference(before, after).p_value < 0.05 for before, after in pairs])
    assert 0.75 <= power <= 0.85


def test_as_many_questions_as_it_names_decide() -> None:
    (before, after), *_ = simulate(400, 0.5, 0.05, 0.05, repeats=1, seed=8)
    n = difference(before, after).n_to_decide(0.02)
    assert n is not None
    d = float((after - before).mean())
    lost, gained = float((before > after).mean()), float((after > before).mean())
    pairs = simulate(n, 0.5, lost, gained, repeats=600)
    decided = np.mean([(x := difference(*pair)).p_value < 0.05 or x.equivalence_p_value(0.02) < 0.05 for pair in pairs])
    assert d != 0
    assert decided >= 0.75


@pytest.mark.parametrize(("n", "margin"), [(20, 0.3), (200, 0.02), (300, 0.02), (400, 0.01), (1000, 0.02)])
def test_a_loss_as_large_as_the_margin_is_rarely_ruled_out(n: int, margin: float) -> None:
    # exactly: so many lost, none gained, which is what fine-tuning does most
    lost = np.arange(n + 1)
    ruled_out = [difference([1.0] * n, [0.0] * k + [1.0] * (n - k)).p_value_above(-margin) < 0.05 for k in range(n + 1)]
    assert stats.binom.pmf(lost, n, margin)[ruled_out].sum() <= 0.05


def test_equal_scores_without_any_spread_are_not_certainty() -> None:
    clusters = [f"subject{i}" for i in range(10)]
    for before, groups in (([1.0] * 10, clusters), ([0.5, 0.5], None), ([0.5] * 10, clusters)):
        found = difference(before, before, groups)
        assert not found.equivalence_p_value(0.02) < 0.05
    assert isnan(seed_noise([[0.0] * 5] * 2).mean.low)


def test_too_few_questions_can_show_no_change_at_all() -> None:
    assert isnan(difference([1.0] * 5, [1.0] * 5).minimum_detectable_change())
    smallest = difference([1.0] * 20, [1.0] * 20).minimum_detectable_change()
    pairs = simulate(20, 0.99, smallest, 0.0, repeats=1000)
    power = np.mean([difference(*pair).p_value < 0.05 for pair in pairs])
    assert 0.75 <= power <= 0.87


def test_the_noise_of_clustered_questions_is_that_of_their_clusters() -> None:
    draw = np.random.default_rng(9)
    subjects = [f"subject{i // 50}" for i in range(1000)]
    shared = np.repeat(draw.normal(0, 0.25, 20), 50)
    changes = (shared + draw.normal(0, 0.2, (4, 1000))).tolist()
    alone, grouped = seed_noise(changes), seed_noise(changes, subjects)
    assert grouped.question_standard_error == pytest.approx(0.25 / np.sqrt(20), rel=0.4)
    assert grouped.question_standard_error > 4 * alone.question_standard_error


def test_no_change_of_a_few_questions_is_not_certainty() -> None:
    same = difference([1.0] * 5, [1.0] * 5)
    assert same.value == 0
    assert same.low < -0.2
    assert same.equivalence_p_value(0.02) > 0.05
    rate = forgetting_rate([1.0] * 40, [1.0] * 40)
    assert rate is not None
    assert rate.value == 0
    assert rate.high > 0


def test_one_graded_question_says_nothing() -> None:
    found = difference([0.5], [0.4])
    assert isnan(found.p_value)
    assert isnan(found.equivalence_p_value(0.02))
    assert found.n_to_decide(0.02) is None


def test_noise_of_seeds_and_of_questions_are_told_apart() -> None:
    draw = np.random.default_rng(5)
    by_seed, by_question = draw.normal(0, 0.05, 8), draw.normal(0, 0.3, 400)
    changes = -0.1 + by_seed[:, None] + by_question[None, :] + draw.normal(0, 0.2, (8, 400))
    found = seed_noise(changes.tolist())
    assert found.training_spread == pytest.approx(by_seed.std(ddof=1), abs=0.01)
    assert found.question_standard_error == pytest.approx(0.3 / 20, abs=0.003)
    together = sqrt(found.question_standard_error**2 + found.training_standard_error**2)
    assert found.mean.standard_error == pytest.approx(together)


def test_the_variance_between_seeds_agrees_with_statsmodels() -> None:
    draw = np.random.default_rng(6)
    changes = draw.normal(0, 0.5, 6)[:, None] + draw.normal(0, 2, (6, 50))
    # without a part of the questions, the two-way analysis is a random intercept by seed
    fitted = MixedLM(changes.ravel(), np.ones(300), groups=np.repeat(range(6), 50)).fit(reml=True)
    assert seed_noise(changes.tolist()).training_spread == pytest.approx(sqrt(float(fitted.cov_re[0, 0])), rel=0.05)


def test_one_seed_leaves_the_noise_of_training_unknown() -> None:
    found = seed_noise([[0.0, -1.0, 0.0, 1.0]])
    assert isnan(found.training_spread)
    assert found.question_standard_error == pytest.approx(mean([0.0, -1.0, 0.0, 1.0]).standard_error)


def test_seeds_asked_unlike_questions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seeds were asked \[1, 2\] questions"):
        seed_noise([[0.0], [0.0, 1.0]])


def test_graded_scores_are_resampled_whole_questions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(7)
    before = draw.uniform(0.4, 0.8, 300)
    after = 0.9 * before
    found = forgetting_rate(before, after)
    assert found is not None
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low < 1e-6  # every question lost the same share: pairing leaves no doubt
    monkeypatch.setattr(paired, "_REPLICATES", 500)
    grouped = forgetting_rate(before, draw.permutation(after), clusters=[str(i % 20) for i in range(300)])
    assert grouped is not None
    assert grouped.low < 0.1 < grouped.high
