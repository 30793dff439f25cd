"""What the one test promises, by exact count of all tables of lost and gained answers."""

import numpy as np
import pytest
from builders import make_scores, slow
from scipy.special import gammaln, xlogy
from scipy.stats import binom

from bench.gates import Tables, judge_suites
from bench.statistics import (
    MARGIN,
    SIMULATIONS,
    Kind,
    Simulation,
    check_arrays,
    draw_pairs,
    end_trainings,
    list_tables,
    multinomial_chances,
    p_values,
)
from slimdown.judging.forgetting_rate import forgetting_rate
from slimdown.stats.estimates import Sampling, compare_scores
from slimdown.stats.likelihood import likelihood_p_values
from slimdown.stats.power import change_power
from slimdown.stats.sequential import block_ends, combine_looks


def changes_p(counts: np.ndarray, change: float) -> np.ndarray:
    """The smaller of the two one-sided p-values of the 95 % interval."""
    sides = [p_values(counts, change, above, Kind.change) for above in (True, False)]
    return np.min(sides, axis=0)


def worst(counts: np.ndarray, is_wrong: np.ndarray, change: float) -> float:
    """The largest chance of these tables over all shares of answers that flip."""
    n, rest = counts[0].sum(), 1 - abs(change)
    fewest = np.concatenate(
        [[0.0], np.geomspace(0.001, rest / 2, 24), np.linspace(0, rest / 2, 24)]
    )
    shares = [(few + max(0, -change), few + max(0, change)) for few in fewest]
    wrong = counts[is_wrong]
    ways = gammaln(n + 1) - gammaln(wrong + 1).sum(axis=1)
    cells = ((a, max(0.0, 1 - a - b), b) for a, b in shares)
    return max(float(np.exp(ways + xlogy(wrong, cell).sum(axis=1)).sum()) for cell in cells)


@pytest.mark.parametrize("n", [20, 35, 60, 100, *slow(300)])
def test_no_claim_is_wrong_in_more_than_five_percent_and_no_interval_misses_more(n: int) -> None:
    counts = list_tables(n)
    changed = changes_p(counts, 0.0)
    for level in (0.05, 0.0125, 0.00042):
        assert worst(counts, changed < level / 2, 0.0) <= level
    # among them those budgets at which a loss that was never seen is as likely as one in 16
    for budget in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1 - 0.065 ** (1 / n), 1 - 0.055 ** (1 / n)):
        above, below = (p_values(counts, -budget, above=side) for side in (True, False))
        # benchmarks, each of which is a step of Holm's
        for k in (1, 2, 4, 20, 119) if budget <= 0.1 else (1,):
            level = 0.05 / k
            assert worst(counts, above < level, -budget) <= level  # exit 0, and so `retained`
            assert worst(counts, below < level, -budget) <= level  # exit 1
        assert worst(counts, changes_p(counts, -budget) < 0.025, -budget) <= 0.05


@pytest.mark.parametrize("n", [20, 27, 45])
def test_the_interval_misses_large_changes_in_five_percent_at_most_whatever_flips(n: int) -> None:
    counts = list_tables(n)
    for change in np.linspace(0.03, 0.96, 32):
        assert worst(counts, changes_p(counts, change) < 0.025, change) <= 0.05


@pytest.mark.parametrize("level", [0.05, 0.0125, 0.00042])
def test_a_change_that_is_not_there_is_claimed_below_the_level_at_every_size(level: float) -> None:
    flips = [*np.geomspace(0.003, 1, 20), 0.45, 0.5, 0.55, 0.9]
    for n in (*range(4, 70, 3), 1000, 10_042):
        assert max(change_power(n, 0.0, share, level) for share in flips) <= level


def test_a_change_that_is_not_there_is_claimed_below_the_level_at_any_look() -> None:
    """All tables of 32 answers, then of 13 more."""
    plan, first, more = block_ends(45), list_tables(32), list_tables(13)
    looks = np.stack(np.broadcast_arrays(first[:, None], first[:, None] + more), axis=2)
    sides = [p_values(looks, 0.0, above, Kind.change) for above in (True, False)]
    # the claim may come at the first look alone
    claims = [combine_looks(p[..., :n_looks], plan) for p in sides for n_looks in (1, 2)]
    is_shown = np.min(claims, axis=0) < 0.025
    for share in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0):
        cell = [share / 2, 1 - share, share / 2]
        chances = [multinomial_chances(counts, cell) for counts in (first, more)]
        assert np.outer(*chances)[is_shown].sum() <= 0.05


def test_tables_have_the_p_values_of_compared_scores_at_each_look() -> None:
    check_arrays(np.random.default_rng(0))


def test_tasks_of_a_group_and_graded_scores_keep_one_added_answer() -> None:
    """All of 8 questions flip, beside 24 others: half an answer would claim a change in 7.0 %."""
    before, after = np.repeat([1.0, 0.0], [7, 25]), np.repeat([0.0, 1.0, 0.0], [7, 1, 24])
    counts = np.array([[7, 24, 1]])
    whole, half = (2 * p_values(counts, 0.0, False, kind)[0] for kind in (Kind.whole, Kind.change))
    assert compare_scores(before, after).p_value == pytest.approx(half)
    assert half < 0.05 < whole
    assert 2 * binom.cdf(1, 8, 0.5) > 0.07
    for sampling in (Sampling(n_subjects=2), Sampling(weights=np.repeat([2.0, 2 / 3], [8, 24]))):
        assert compare_scores(before, after, sampling).p_value > 0.05
    graded = compare_scores(before, after - 1e-9 * (after > 0))
    assert graded.p_value == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("n", [10, 20, 45])
def test_one_more_lost_answer_never_speaks_less_for_a_loss(n: int) -> None:
    for gained in range(4):
        lost = np.arange(gained + 1, n - gained + 1)
        counts = np.stack([lost, n - lost - gained, np.full(len(lost), gained)], axis=1)
        assert (np.diff(changes_p(counts, 0.0)) < 0).all()


def test_a_forgetting_rate_is_above_nothing_where_a_loss_is_shown() -> None:
    for lost in range(1, 14):
        before = np.repeat([1.0, 0.0], [45, 15])
        after = np.repeat([0.0, 1.0, 0.0], [lost, 45 - lost + 2, 13])
        rate, d = forgetting_rate(before, after), compare_scores(before, after)
        assert (rate.low > 0) == (d.high < 0) == (d.p_value < 0.05 and d.value < 0)


@pytest.mark.parametrize("n", [5, 10, 20, 50, 200])
@pytest.mark.parametrize("loss", [1.0, 0.8, 0.3])
def test_rare_large_losses_are_ruled_out_wrongly_in_six_percent(n: int, loss: float) -> None:
    """Two values, a large loss and the small gain that makes their mean 0: the worst there is."""
    seen = np.arange(n + 1)
    counts = np.stack([seen, n - seen], axis=1).astype(float)
    for rare in (*np.linspace(0.01, 0.5, 30), 1 - 0.065 ** (1 / n), 1 - 0.055 ** (1 / n)):
        gain = rare * loss / (1 - rare)
        if gain <= 1:
            is_ruled_out = likelihood_p_values(np.array([-loss, gain]), counts, -1.0) < 0.05
            assert binom.pmf(seen, n, rare)[is_ruled_out].sum() <= 0.06


@pytest.mark.parametrize("scale", [1.0, 0.999])
def test_verdict_and_interval_never_contradict_each_other(scale: float) -> None:
    draw = np.random.default_rng(0)
    for n in (20, 60, 200) * 20:
        before, after = draw.integers(0, 2, n) * 1.0, draw.integers(0, 2, n) * scale
        d = compare_scores(before, after)
        assert (d.p_value < 0.05) == (not d.low < 0 < d.high)
        low, high = d.margin_interval()
        for margin in (abs(d.value) + 0.05, abs(low), abs(high) + 1e-6):
            assert (d.equivalence_p_value(margin) < 0.05) == (-margin < low and high < margin) or (
                min(abs(low + margin), abs(high - margin)) < 1e-5
            )


def test_gates_and_the_atlas_use_the_tests_of_a_difference() -> None:
    tables = Tables.list_likely(26)
    lost, gained, kept = 6, 1, 14
    [place] = np.flatnonzero(
        (tables.lost == lost) & (tables.gained == gained) & (tables.stayed == kept)
    )
    d = compare_scores(*make_scores(kept, lost, gained, 5))
    assert 2 * tables.test(0.0, above=False, kind=Kind.change)[place] == pytest.approx(d.p_value)
    assert tables.test(-0.05, above=False)[place] == pytest.approx(d.p_value_below(-0.05))
    assert tables.test(-0.05, above=True)[place] == pytest.approx(d.p_value_above(-0.05))
    draw = np.random.default_rng(0)
    lost, kept, gained = draw.multinomial(60, [0.2, 0.7, 0.1])
    [pair] = draw_pairs((60, 0.3, 1.0), -0.1, 1, np.random.default_rng(0))
    d = compare_scores(*make_scores(kept, lost, gained, 0))
    assert (pair.value, pair.p_value) == (pytest.approx(d.value), pytest.approx(d.p_value))
    assert pair.equivalence_p_value(MARGIN) == pytest.approx(d.equivalence_p_value(MARGIN))


def test_gates_err_as_often_as_the_page_says() -> None:
    rates = {}
    for rule, *cells in judge_suites(40, 8, 2000):
        rates[rule] = [[float(x) for x in cell.split(", ")] for cell in cells]
    falls_in_score = next(rates[rule] for rule in rates if rule.startswith("a score falls"))
    forgotten, budget = (rates[rule] for rule in rates if rule.startswith("slimdown: "))
    # Independently: a fall of three or more of 40 answers, of which so many change.
    flips = np.arange(3, 41)
    at_least_three = binom.cdf((flips - 3) // 2, flips, 0.5)
    falls = [binom.pmf(flips, 40, share) @ at_least_three for share in (0.05, 0.1)]
    expected = [100 * (1 - (1 - fall) ** 8) for fall in falls]
    assert falls_in_score[0] == pytest.approx(expected, abs=0.06)
    assert max(budget[0]) <= 5
    assert max(forgotten[0]) <= 5
    assert max(budget[1]) <= 5


def test_looks_end_a_training_within_its_budgets_in_five_percent_at_most() -> None:
    rates = [float(row[2]) for row in end_trainings(0, np.random.default_rng(0))]
    assert all(1 < rate <= 5 for rate in rates), rates


@pytest.mark.parametrize("simulate", SIMULATIONS)
def test_each_simulation_judges_what_it_draws(simulate: Simulation) -> None:
    _, _, percent, _ = next(iter(simulate(20, np.random.default_rng(0))))
    assert 0 <= float(percent) <= 100
