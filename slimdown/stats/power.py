"""Power: how large a change some questions show, and how many questions a change needs.

Changes, margins and spreads are shares. "Show" means in four of five repetitions: 80 % power.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from math import isnan, nan, sqrt

import numpy as np
import scipy

from slimdown.stats.estimates import Difference
from slimdown.stats.likelihood import (
    ALPHA,
    PSEUDO_ANSWERS,
    added_to_change,
    added_to_margin,
    null_spread,
)
from slimdown.stats.sequential import EARLY_SHARE, share_error

POWER = 0.8
_MOST = 10**6  # questions; larger numbers are not named


def minimum_detectable_change(difference: Difference, alpha: float = ALPHA) -> float:
    """Compute the smallest true change that this many questions show; nan if they show none.

    The share of answers that change is the measured one, or more if the change itself needs more.
    After looks, only the last look counts.

    Args:
        difference: of the questions.
        alpha: of the two-sided test, after its correction for other benchmarks.
    """
    d, test = difference, difference.test
    if isnan(d.spread):
        return nan
    if test.plan:
        alpha *= float(share_error(test.plan)[len(d.sampling.looks) - 1])
    if d.has_independent_answers and d.sampling.weights is None:
        discordant = (np.count_nonzero(d.changes) + 1) / (d.n + 2)
        is_simple = d.sampling.is_simple
        if change_power(d.n, 1.0, 1.0, alpha, is_simple) < POWER:
            return nan
        low, high = 0.0, 1.0
        for _ in range(14):
            middle = (low + high) / 2
            power = change_power(d.n, middle, max(discordant, middle), alpha, is_simple)
            low, high = (low, middle) if power >= POWER else (middle, high)
        return high
    reach = max(abs(end - d.value) for end in d.interval(alpha))
    smallest = reach + float(scipy.special.ndtri(POWER)) * d.spread / sqrt(len(d.observations))
    return smallest if smallest <= 1 else nan


def change_power(
    n: int, change: float, discordant: float, alpha: float, is_simple: bool = True
) -> float:
    """Compute how often n 0/1 answers show a change if a share `discordant` of them changes.

    The likelihood ratio of no change depends only on the lost and gained answers l and g, each
    with what is added: l log(2 l / (l + g)) + g log(2 g / (l + g)). `is_simple` is that of
    `Sampling`.
    """
    ends = scipy.special.bdtrik([1e-6, 1 - 1e-6], n, discordant) if discordant < 1 else [n, n]
    changed = np.arange(max(0, int(ends[0])), min(n, int(ends[1]) + 1) + 1)
    # the largest count of the rarer kind that still shows a change; -1 if none does
    critical, beyond = np.full(len(changed), -1), changed // 2 + 1
    added = added_to_change(changed, n) if is_simple else PSEUDO_ANSWERS
    while (beyond - critical > 1).any():
        middle = (critical + beyond) // 2
        small, large = middle + added, changed - middle
        ratios = small * 2 / (small + large), large * 2 / (small + large)
        nats = scipy.special.xlogy(small, ratios[0]) + scipy.special.xlogy(large, ratios[1])
        is_shown = (small < large) & (2 * nats > scipy.special.ndtri(alpha / 2) ** 2)
        critical = np.where(is_shown, middle, critical)
        beyond = np.where(is_shown, beyond, middle)
    share = (1 + change / discordant) / 2
    shown = scipy.special.bdtr(critical.astype(float), changed, share)
    shown += scipy.special.bdtrc((changed - critical - 1).astype(float), changed, share)
    log_chances = -np.log(n + 1) - scipy.special.betaln(n - changed + 1, changed + 1)
    log_chances += scipy.special.xlogy(changed, discordant)
    log_chances += scipy.special.xlog1py(n - changed, -discordant)
    return float((np.exp(log_chances) * np.where(critical < 0, 0.0, shown)).sum())


def n_to_decide(
    difference: Difference, margin: float, alpha: float = ALPHA, budget: float | None = None
) -> int | None:
    """Estimate how many questions show either a change or that it is within the margin.

    The true change is assumed to be as large as measured, and the mean to be normal. A change stays
    undecided between the largest one that is within the margin and the smallest one that is shown.
    More questions close this gap.

    Args:
        difference: of the questions so far.
        margin: a change below it counts as none.
        alpha: of the two-sided test of a change, and of each of the two one-sided tests against the
            margin.
        budget: if set, questions must instead show on which side of this budget the loss lies.

    Returns:
        The number; None if it cannot be estimated.
    """
    d = difference
    if isnan(d.spread):
        return None
    if d.sampling.looks:
        alpha *= EARLY_SHARE
    values, counts, spread = d.test.values, d.test.counts[-1], d.spread
    is_plain = d.has_independent_answers and d.sampling.weights is None
    if is_plain or (d.is_binary and not d.changes.any()):
        # few questions without a flip do not tell how rare flips are
        values, counts = np.append(values, (-1.0, 1.0)), np.append(counts, (0.5, 0.5))
        spread = sqrt(float(counts @ (values - d.value) ** 2) / counts.sum())

    def spread_at(threshold: float) -> float:
        sign, end = (1, d.test.lowest) if d.value > threshold else (-1, -d.test.highest)
        # with so many answers, the one that is added hardly counts
        excess, end = sign * (values - threshold), end - sign * threshold
        return null_spread(excess, _MOST * counts, end)

    of_change, of_margin = (-float(scipy.special.ndtri(a)) for a in (alpha / 2, alpha))
    at_none, above, below, at_budget = map(spread_at, (0.0, margin, -margin, -(budget or 0.0)))

    added = float(np.atleast_1d(d.change_test.added)[-1])
    losing, gaining = (float(counts[side * values > 0].sum()) / counts.sum() for side in (-1, 1))

    def find_step(claimed: float, favorable: float, adverse: float, n: int) -> float:
        """Return what the added answers move a mean of n answers, of which such shares flip."""
        if not d.test.is_margin:
            return PSEUDO_ANSWERS / n
        return float(added_to_margin(claimed, round(favorable * n), round(adverse * n), n)) / n

    def power(n: int) -> float:
        root = sqrt(n)
        shown = of_change * at_none / root + added / n
        high = min(
            shown, margin - of_margin * above / root - find_step(-margin, losing, gaining, n)
        )
        low = max(
            -shown, -margin + of_margin * below / root + find_step(-margin, gaining, losing, n)
        )
        ends = np.array([-shown, shown, low, max(low, high)])
        if budget is not None:
            within = of_margin * at_budget / root + find_step(-budget, gaining, losing, n)
            beyond = of_margin * at_budget / root + find_step(budget, losing, gaining, n)
            ends = np.array([-budget - beyond, -budget + within, -budget, -budget])
        chances = scipy.special.ndtr((ends - d.value) * root / spread)
        return float(1 - (chances[1] - chances[0]) + (chances[3] - chances[2]))

    if (fewest := _find_fewest(power)) is None:
        return None
    return max(d.n + 1, round(fewest * d.n / len(d.observations)))  # if clusters stay as large


def can_show_within(difference: Difference, budget: float, share: float) -> bool:
    """Whether these questions would show a loss to be within a budget if it were much smaller.

    Args:
        difference: of the questions.
        budget: the largest loss that is allowed.
        share: of the changes of single questions, those that would be left.
    """
    test = difference.test
    counts = np.where(test.values != 0, share, 1.0) * test.counts[-1:]
    n_unchanged = test.counts[-1].sum() - counts.sum()
    values, counts = np.append(test.values, 0.0), np.append(counts, [[n_unchanged]], axis=1)
    smaller = replace(test, values=values, counts=counts, plan=(), n_skipped_looks=0)
    return bool(smaller.p_values_above(np.array([-budget]))[0] < ALPHA)


def _find_fewest(power: Callable[[int], float]) -> int | None:
    """Find the smallest number of answers that has the power; None where it is too large."""
    most = 2
    while power(most) < POWER:
        most *= 2
        if most > _MOST:
            return None
    return bisect_left(range(most), POWER, lo=most // 2 + 1, key=power)
