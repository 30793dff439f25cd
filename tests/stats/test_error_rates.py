"""What the one test promises, by exact count of all tables of lost and gained answers."""

import numpy as np
import pytest
from scipy.special import gammaln, xlogy
from scipy.stats import binom

from bench.gates import judge_suites
from bench.statistics import end_trainings
from slimdown.stats.estimates import compare_scores
from slimdown.stats.likelihood import likelihood_p_values

VALUES = np.array([-1.0, 0.0, 1.0])


def tables_of(n: int) -> np.ndarray:
    """All counts of lost, unchanged and gained answers of n questions, [tables, 3]."""
    lost, gained = (table.ravel() for table in np.indices((n + 1, n + 1)))
    counts = np.stack([lost, n - lost - gained, gained], axis=1)
    return counts[counts[:, 1] >= 0]


def p_above(counts: np.ndarray, change: float) -> np.ndarray:
    return likelihood_p_values(VALUES - change, counts, -1 - change)


def p_below(counts: np.ndarray, change: float) -> np.ndarray:
    return likelihood_p_values(change - VALUES, counts, change - 1)


def worst(counts: np.ndarray, is_wrong: np.ndarray, change: float) -> float:
    """The largest chance of these tables over all shares of answers that flip."""
    n, rest = counts[0].sum(), 1 - abs(change)
    fewest = np.append(0.0, np.geomspace(0.001, rest / 2, 24))
    shares = [(few + max(0, -change), few + max(0, change)) for few in fewest]
    wrong = counts[is_wrong]
    ways = gammaln(n + 1) - gammaln(wrong + 1).sum(axis=1)
    cells = ((a, max(0.0, 1 - a - b), b) for a, b in shares)
    return max(float(np.exp(ways + xlogy(wrong, cell).sum(axis=1)).sum()) for cell in cells)


@pytest.mark.parametrize("n", [20, 35, 60, 100, 300])
def test_no_claim_is_wrong_in_more_than_five_percent_and_no_interval_misses_more(n: int) -> None:
    counts = tables_of(n)
    changed = np.minimum(p_above(counts, 0.0), p_below(counts, 0.0)) < 0.025
    assert worst(counts, changed, 0.0) <= 0.05
    # among them those budgets at which a loss that was never seen is as likely as one in 16
    for budget in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1 - 0.065 ** (1 / n), 1 - 0.055 ** (1 / n)):
        above, below = p_above(counts, -budget), p_below(counts, -budget)
        assert worst(counts, above < 0.05, -budget) <= 0.05  # exit 0, and so `retained`
        assert worst(counts, below < 0.05, -budget) <= 0.05  # exit 1
        assert worst(counts, np.minimum(above, below) < 0.025, -budget) <= 0.055


@pytest.mark.parametrize("n", [5, 10, 20, 50, 200])
@pytest.mark.parametrize("loss", [1.0, 0.8, 0.3])
def test_rare_large_losses_of_graded_scores_are_ruled_out_wrongly_in_six_percent_at_most(
    n: int, loss: float
) -> None:
    """Two values, a large loss and the small gain that makes their mean 0: the worst there is."""
    seen = np.arange(n + 1)
    counts = np.stack([seen, n - seen], axis=1).astype(float)
    for rare in (*np.linspace(0.01, 0.5, 30), 1 - 0.065 ** (1 / n), 1 - 0.055 ** (1 / n)):
        gain = rare * loss / (1 - rare)
        if gain <= 1:
            p_values = likelihood_p_values(np.array([-loss, gain]), counts, -1.0)
            assert binom.pmf(seen, n, rare)[p_values < 0.05].sum() <= 0.06


@pytest.mark.parametrize("scale", [1.0, 0.999])
def test_verdict_and_interval_never_contradict_each_other(scale: float) -> None:
    draw = np.random.default_rng(0)
    for n in (20, 60, 200) * 20:
        before, after = draw.integers(0, 2, n) * 1.0, draw.integers(0, 2, n) * scale
        d = compare_scores(before, after)
        assert (d.p_value < 0.05) == (not d.low < 0 < d.high)
        low, high = d.interval(0.10)
        for margin in (abs(d.value) + 0.05, abs(low), abs(high) + 1e-6):
            assert (d.equivalence_p_value(margin) < 0.05) == (-margin < low and high < margin) or (
                min(abs(low + margin), abs(high - margin)) < 1e-5
            )


def test_gates_err_as_often_as_the_page_says() -> None:
    rates = {
        rule: [[float(x) for x in cell.split(", ")] for cell in cells]
        for rule, *cells in judge_suites(40, 8, 2000)
    }
    # Independently: a fall of three or more of 40 answers, of which so many change.
    falls = [
        sum(
            binom.pmf(flips, 40, share) * binom.cdf((flips - 3) // 2, flips, 0.5)
            for flips in range(3, 41)
        )
        for share in (0.05, 0.1)
    ]
    expected = [100 * (1 - (1 - fall) ** 8) for fall in falls]
    assert rates["a score falls by more than 5 points"][0] == pytest.approx(expected, abs=0.06)
    for rule in ("slimdown: a budget of 5 points", "slimdown: something is forgotten"):
        assert max(rates[rule][0]) <= 5
    assert max(rates["slimdown: a budget of 5 points"][1]) <= 5


def test_looks_end_a_training_within_its_budgets_in_five_percent_at_most() -> None:
    rates = [float(row[2]) for row in end_trainings(0, np.random.default_rng(0))]
    assert all(1 < rate <= 5 for rate in rates), rates
