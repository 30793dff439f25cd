"""How many questions see how much: what is named is what the test needs."""

from math import isnan, sqrt

import numpy as np
import pytest
from builders import make_scores
from scipy.stats import norm

from bench.statistics import Kind, p_values
from slimdown.stats.estimates import Difference, Sampling, compare_scores
from slimdown.stats.power import change_power, minimum_detectable_change, n_to_decide


def compare_counts(lost: int, gained: int, n: int) -> Difference:
    return compare_scores(*make_scores(0, lost, gained, n - lost - gained))


def draw_p_values(n: int, lost: float, gained: float, threshold: float = 0.0) -> np.ndarray:
    """The two one-sided p-values of 2,000 draws against a threshold, [2, draws]; 0: of a change."""
    draw = np.random.default_rng(0)
    counts = draw.multinomial(n, [lost, 1 - lost - gained, gained], size=2000)
    kind = Kind.whole if threshold else Kind.change
    return np.stack([p_values(counts, threshold, above, kind) for above in (True, False)])


@pytest.mark.parametrize(("lost", "gained", "n"), [(60, 60, 1000), (5, 5, 60), (0, 0, 100)])
def test_the_detectable_change_is_shown_four_times_in_five(lost: int, gained: int, n: int) -> None:
    smallest = minimum_detectable_change(compare_counts(lost, gained, n))
    discordant = max((lost + gained + 1) / (n + 2), smallest)
    fell, rose = (discordant + smallest) / 2, (discordant - smallest) / 2
    power = (2 * draw_p_values(n, fell, rose).min(axis=0) < 0.05).mean()
    assert change_power(n, smallest, discordant, 0.05) == pytest.approx(power, abs=0.03)
    assert 0.77 <= power <= 0.84


def test_too_few_questions_can_show_no_change_at_all() -> None:
    assert isnan(minimum_detectable_change(compare_counts(0, 0, 5)))
    assert minimum_detectable_change(compare_scores([0.5] * 9, [0.4, 0.5, 0.6] * 3)) > 0.2


@pytest.mark.parametrize(
    ("counts", "sampling"),
    [
        ((20, 5, 5, 33), Sampling(looks=(32, 45, 63), n_available=1000)),
        ((0, 12, 2, 86), Sampling(n_subjects=2)),  # for their whole added answer
    ],
    ids=["looks", "tasks of a group"],
)
def test_it_needs_more_than_plain_questions(
    counts: tuple[int, int, int, int], sampling: Sampling
) -> None:
    scores = make_scores(*counts)
    harder, plain = compare_scores(*scores, sampling), compare_scores(*scores)
    assert minimum_detectable_change(harder) > minimum_detectable_change(plain)
    needed = n_to_decide(harder, 0.02), n_to_decide(plain, 0.02)
    assert needed[0] > needed[1]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("lost", "gained", "n"),
    [(20, 20, 400), (22, 18, 400), (72, 60, 1319), (8, 4, 200), (20, 7, 100)],
)
def test_so_many_questions_decide_four_times_in_five(lost: int, gained: int, n: int) -> None:
    needed = n_to_decide(compare_counts(lost, gained, n), 0.02)
    assert needed > n
    changed = 2 * draw_p_values(needed, lost / n, gained / n).min(axis=0) < 0.05
    above = draw_p_values(needed, lost / n, gained / n, -0.02)[0]
    below = draw_p_values(needed, lost / n, gained / n, 0.02)[1]
    decided = (changed | (np.maximum(above, below) < 0.05)).mean()
    assert 0.74 <= decided <= 0.88


@pytest.mark.parametrize(("lost", "gained", "n"), [(20, 7, 100), (8, 2, 200), (30, 20, 300)])
def test_a_change_needs_as_many_questions_as_the_textbook_says(
    lost: int, gained: int, n: int
) -> None:
    """The sample size of McNemar's test (Connor 1987), and the half answer that our test adds."""
    change = (lost - gained) / n
    flips = (lost + gained + 1) / (n + 1)  # with half of an answer of each kind
    root = norm.isf(0.025) * sqrt(flips) + norm.isf(0.2) * sqrt(flips - change**2)
    expected = (root / change) ** 2 + 2 * 0.5 / change
    needed = n_to_decide(compare_counts(lost, gained, n), margin=0.0)  # so only a change decides
    assert needed == pytest.approx(expected, rel=0.01)


def test_fewer_questions_without_a_flip_never_promise_a_verdict_sooner() -> None:
    for budget in (None, 0.02):
        needed = [n_to_decide(compare_counts(0, 0, n), 0.02, budget=budget) for n in (4, 10, 40)]
        assert needed == sorted(needed, reverse=True)  # type: ignore[type-var]


@pytest.mark.parametrize(("lost", "gained", "n"), [(72, 60, 1319), (20, 7, 100), (8, 4, 200)])
def test_so_many_questions_tell_which_side_of_a_budget_it_is(
    lost: int, gained: int, n: int
) -> None:
    budget = 0.02 if n > 1000 else 0.05
    needed = n_to_decide(compare_counts(lost, gained, n), 0.02, budget=budget)
    smaller = draw_p_values(needed, lost / n, gained / n, -budget).min(axis=0)
    assert 0.74 <= (smaller < 0.05).mean() <= 0.88
