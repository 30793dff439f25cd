"""How large a change so many questions show, and how many questions show so large a change: the tests' power, solved.

Pure functions of numbers; changes, margins and spreads are shares.
"""

from bisect import bisect_left
from collections.abc import Callable
from math import nan, sqrt

import numpy as np
import scipy
from numpy.typing import NDArray

from slimdown.stats.clusters import Floats

POWER = 0.8  # how often a change is to be shown
_MOST = 10**9  # questions; beyond it no number is named


def in_standard_errors(alpha: float, freedom: float) -> float:
    """How many standard errors a change must be to be shown at `POWER` by a two-sided t-test."""
    if not freedom > 0:
        return nan
    return float(
        scipy.special.stdtrit(freedom, 1 - alpha / 2) + scipy.special.stdtrit(freedom, POWER)
    )


def smallest_shown(n: int, discordant: float, alpha: float) -> float:
    """The smallest change that McNemar's exact test shows at `POWER`; nan if it shows none.

    Args:
        n: questions.
        discordant: the share of answers that change, if the change itself does not need more.
        alpha: of the two-sided test.
    """
    if mcnemar_power(n, 1.0, 1.0, alpha) < POWER:
        return nan
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        enough = mcnemar_power(n, middle, max(discordant, middle), alpha) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def mcnemar_power(n: int, change: float, discordant: float, alpha: float) -> float:
    """How often McNemar's exact test shows a change, if so many answers change in all."""
    ends = scipy.special.bdtrik([1e-6, 1 - 1e-6], n, discordant) if discordant < 1 else [n, n]
    likely = np.arange(max(0, int(ends[0])), min(n, int(ends[1]) + 1) + 1)
    # The most whose tail is within alpha / 2; below 0 where even none is beyond it: then nothing is shown.
    critical = np.where(
        0.5**likely > alpha / 2, -1.0, np.floor(scipy.special.bdtrik(alpha / 2, likely, 0.5))
    )
    share = (1 + change / discordant) / 2
    lower = scipy.special.bdtr(critical, likely, share)
    shown = lower + scipy.special.bdtrc(likely - critical - 1, likely, share)
    return float((_chances(likely, n, discordant) * np.where(critical < 0, 0.0, shown)).sum())


def _chances(counts: NDArray[np.signedinteger], n: int, share: float) -> Floats:
    """How likely each count of n is. `scipy.stats` has this too, and takes half a second to import."""
    ways = (
        scipy.special.gammaln(n + 1)
        - scipy.special.gammaln(counts + 1)
        - scipy.special.gammaln(n - counts + 1)
    )
    likely: Floats = np.exp(
        ways + scipy.special.xlogy(counts, share) + scipy.special.xlog1py(n - counts, -share)
    )
    return likely


def questions_to_decide(
    change: float,
    spread: float,
    null_spread: Callable[[float, int], float],
    margin: float,
    continuity: float,
    alpha: float,
) -> int | None:
    """How many questions show, at `POWER`, either that there is a change or that it is within the margin.

    Args:
        change: the true one.
        spread: the standard deviation of one question's difference.
        null_spread: what a test of so many questions against this change takes it for.
        margin: a change below it counts as none.
        continuity: by how many answers McNemar's exact test asks more, and each one-sided test half as many: 1, or 0
            for scores without bounds.
        alpha: of the two-sided test of a change, and of each of the two one-sided tests against the margin.

    The mean difference is taken to be normal. What leaves both open is that it lies in a gap between the largest that
    would be refuted and the smallest that would be shown; the gap closes as questions are added.
    """
    of_change, of_margin = (-scipy.special.ndtri(a) for a in (alpha / 2, alpha))

    def decided(n: int) -> float:
        at_none, above, below = (null_spread(x, n) for x in (0.0, margin, -margin))
        root, step = sqrt(n), continuity / n
        shown = of_change * at_none / root + step
        high = min(shown, margin - of_margin * above / root - step / 2)
        low = max(-shown, -margin + of_margin * below / root + step / 2)
        ends = np.array([-shown, shown, low, max(low, high)])
        chances = scipy.special.ndtr((ends - change) * root / spread)
        return float(1 - (chances[1] - chances[0]) + (chances[3] - chances[2]))

    most = 2
    while decided(most) < POWER:
        most *= 2
        if most > _MOST:
            return None
    few = range(most // 2, most)
    return few.start + bisect_left(few, POWER, lo=1, key=decided)


def questions_to_bound(
    change: float,
    spread: float,
    null_spread: Callable[[float, int], float],
    threshold: float,
    alpha: float,
) -> int | None:
    """How many questions show, at `POWER`, on which side of `threshold` the change lies; arguments as above."""
    if change == threshold:
        return None
    z_alpha, z_power = (-scipy.special.ndtri(a) for a in (alpha, 1 - POWER))

    def shown(n: int) -> bool:
        return bool(
            abs(change - threshold) * sqrt(n)
            >= z_alpha * null_spread(threshold, n) + z_power * spread
        )

    return bisect_left(range(_MOST), True, lo=1, key=shown) if shown(_MOST - 1) else None
