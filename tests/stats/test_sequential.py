"""Stopping early: what is shown at a look holds however long one went on looking.

The chances come from published tables, the verdicts from simulation, and `ville` is another's test
of the same.
"""

import numpy as np
import pytest
import ville
from builders import draw_scores
from scipy.special import ndtr
from scipy.stats import binom

from slimdown.stats.estimates import Difference, Sampling, compare_scores
from slimdown.stats.likelihood import likelihood_p_values
from slimdown.stats.sequential import (
    _LOG_RATIOS,
    _chance_of_any,
    _log_chances,
    block_ends,
    combine_looks,
    share_error,
)

MARGIN = 0.02


def compare_first(before: np.ndarray, after: np.ndarray, n: int, n_available: int) -> Difference:
    looks = tuple(sorted({n, *(end for end in block_ends(n_available) if end <= n)}))
    return compare_scores(before[:n], after[:n], Sampling(looks=looks, n_available=n_available))


@pytest.mark.parametrize(
    ("n_looks", "pocock", "last_of_obrien_and_fleming"),
    [(1, 1.960, 1.960), (2, 2.178, 1.977), (5, 2.413, 2.040), (10, 2.555, 2.087)],
)  # Jennison and Turnbull 2000, tables 2.1 and 2.3
def test_published_bounds_leave_five_percent(
    n_looks: int, pocock: float, last_of_obrien_and_fleming: float
) -> None:
    looks = np.arange(1, n_looks + 1)
    for bounds in (0 * looks + pocock, last_of_obrien_and_fleming * np.sqrt(n_looks / looks)):
        chance = _chance_of_any(ndtr(-bounds), tuple(looks))
        assert 2 * chance == pytest.approx(0.05, abs=0.0002)


@pytest.mark.parametrize("n", [60, 200, 300, 600, 1319])
@pytest.mark.parametrize(("margin", "error"), [(0.02, 0.05), (0.05, 0.05), (0.05, 0.0125)])
def test_losses_alone_of_the_margin_are_called_retained_within_the_error_by_exact_count(
    n: int, margin: float, error: float
) -> None:
    """P-values are coarse where nothing is gained."""
    plan = block_ends(n)
    ratio = np.exp(np.interp(np.log(error), _log_chances(plan), _LOG_RATIOS))
    # of each number of losses, how likely it is where it is not yet called retained
    likely, retained, n_before = np.ones(1), 0.0, 0
    for look, share in zip(plan, share_error(plan), strict=True):
        new = np.arange(look - n_before + 1)
        likely, n_before = np.convolve(likely, binom.pmf(new, len(new) - 1, margin)), look
        lost = np.arange(look + 1)
        counts = np.stack([lost, look - lost], axis=1).astype(float)
        p_values = likelihood_p_values(np.array([-1.0, 0.0]) + margin, counts, margin - 1)
        is_shown = p_values <= ratio * share
        retained, likely = retained + likely[is_shown].sum(), np.where(is_shown, 0.0, likely)
    assert retained <= error


@pytest.mark.parametrize(
    ("n", "lost", "gained", "threshold"),
    [(600, 0.1, 0.1, 0.0), (1319, 0.01, 0.01, 0.0), (1200, 0.025, 0.005, MARGIN)],
)
def test_whoever_stops_when_a_claim_shows_is_wrong_in_five_percent_at_most(
    n: int, lost: float, gained: float, threshold: float
) -> None:
    """No change, or a loss of exactly the margin; at any look, since no p-value rises later."""
    n_runs, plan = 2000, block_ends(n)
    draw = np.random.default_rng(3)
    added = [
        draw.multinomial(m, [lost, 1 - lost - gained, gained], n_runs) for m in np.diff([0, *plan])
    ]
    counts = np.cumsum(added, axis=0).swapaxes(0, 1).reshape(-1, 3).astype(float)
    excess = np.array([-1.0, 0.0, 1.0]) + threshold
    above = likelihood_p_values(excess, counts, threshold - 1).reshape(n_runs, -1)
    wrong = combine_looks(above, plan) <= 0.05
    assert 0.005 < wrong.mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / n_runs)
    assert (above <= 0.05).any(axis=1).mean() > 0.07  # looking as often at a test for one look


def test_graded_losses_too_rare_to_have_been_seen_are_not_ruled_out_early() -> None:
    draw = np.random.default_rng(9)
    before = draw.uniform(0.5, 0.9, 1000)
    after = before + draw.normal(0, 0.001, 1000)
    assert compare_first(before, after, 45, 1000).equivalence_p_value(MARGIN) > 0.05


def test_villes_test_of_the_answers_that_flipped_agrees_about_when_a_loss_is_known() -> None:
    """Its e-process allows a look after each answer, which costs it some of the power of ours."""
    ours, theirs = [], []
    for seed in range(20):
        before, after = draw_scores(1000, 0.5, 0.16, 0.06, seed)
        looks = (compare_first(before, after, n, 1000) for n in block_ends(1000))
        ours.append(next(d.n for d in looks if d.p_value < 0.05))
        flips = np.flatnonzero(before != after)
        theirs.append(flips[ville.BernoulliTest(0.5).fit(after[flips]).stopping_time() - 1] + 1)
    assert np.median(theirs) / 1.6 < np.median(ours) < 1.6 * np.median(theirs)
