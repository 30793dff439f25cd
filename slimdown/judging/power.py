"""How large a change so many questions show, and how many questions show so large a change: the tests' power, solved.

Pure functions of numbers; changes, margins and spreads are shares.
"""

from collections.abc import Callable
from math import nan, sqrt
from typing import Any

import numpy as np
import scipy

_MOST = 10**9  # questions; beyond it no number is named


def in_standard_errors(alpha: float, power: float, freedom: float) -> float:
    """How many standard errors a change must be to be shown with this power by a two-sided t-test."""
    if not freedom > 0:
        return nan
    return float(scipy.special.stdtrit(freedom, 1 - alpha / 2) + scipy.special.stdtrit(freedom, power))


def smallest_shown(n: int, discordant: float, alpha: float, power: float) -> float:
    """The smallest change that McNemar's exact test shows with this power; nan if it shows none.

    Args:
        n: questions.
        discordant: the share of answers that change, if the change itself does not need more.
        alpha: of the two-sided test.
        power: how often it is to be shown.
    """
    if mcnemar_power(n, 1.0, 1.0, alpha) < power:
        return nan
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        enough = mcnemar_power(n, middle, max(discordant, middle), alpha) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def mcnemar_power(n: int, change: float, discordant: float, alpha: float) -> float:
    """How often McNemar's exact test shows a change, if so many answers change in all."""
    binom = scipy.stats.binom
    likely = np.arange(*(int(end) for end in (binom.ppf(1e-6, n, discordant), binom.ppf(1 - 1e-6, n, discordant) + 1)))
    critical: Any = binom.ppf(alpha / 2, likely, 0.5)  # the first count whose tail reaches alpha / 2; reject below it
    critical = critical - (binom.cdf(critical, likely, 0.5) > alpha / 2)
    share = (1 + change / discordant) / 2
    shown = binom.cdf(critical, likely, share) + binom.sf(likely - critical - 1, likely, share)
    return float((binom.pmf(likely, n, discordant) * np.where(critical < 0, 0.0, shown)).sum())


def questions_to_decide(
    change: float,
    spread: float,
    null_spread: Callable[[float], float],
    margin: float,
    continuity: float,
    alpha: float,
    power: float,
) -> int | None:
    """How many questions show, with this power, either that there is a change or that it is within the margin.

    Args:
        change: the true one.
        spread: the standard deviation of one question's difference.
        null_spread: what a test against this change takes it for.
        margin: a change below it counts as none.
        continuity: by how many answers McNemar's exact test asks more, and each one-sided test half as many: 1, or 0
            for graded scores.
        alpha: of the two-sided test of a change, and of each of the two one-sided tests against the margin.
        power: how often one of the two is to be shown.

    The mean difference is taken to be normal. What leaves both open is that it lies in a gap between the largest that
    would be refuted and the smallest that would be shown; the gap closes as questions are added.
    """
    of_change, of_margin = (-scipy.special.ndtri(a) for a in (alpha / 2, alpha))
    at_none, above, below = (null_spread(x) for x in (0.0, margin, -margin))

    def decided(n: int) -> float:
        root, step = sqrt(n), continuity / n
        shown = of_change * at_none / root + step
        high = min(shown, margin - of_margin * above / root - step / 2)
        low = max(-shown, -margin + of_margin * below / root + step / 2)
        ends = np.array([-shown, shown, low, max(low, high)])
        chances = scipy.special.ndtr((ends - change) * root / spread)
        return float(1 - (chances[1] - chances[0]) + (chances[3] - chances[2]))

    fewest, most = 1, 2
    while decided(most) < power:
        fewest, most = most, 2 * most
        if most > _MOST:
            return None
    while most - fewest > 1:
        middle = (fewest + most) // 2
        fewest, most = (middle, most) if decided(middle) < power else (fewest, middle)
    return most


def questions_to_bound(
    change: float, spread: float, null_spread: Callable[[float], float], threshold: float, alpha: float, power: float
) -> int | None:
    """How many questions show, with this power, on which side of `threshold` the change lies; arguments as above."""
    if change == threshold:
        return None
    z_alpha, z_power = (-scipy.special.ndtri(a) for a in (alpha, 1 - power))
    n = ((z_alpha * null_spread(threshold) + z_power * spread) / (change - threshold)) ** 2
    return int(np.ceil(n)) if n < _MOST else None
