"""Scores before and after -> the share of what was there that is gone, with an interval that may have no end."""

from collections.abc import Sequence
from math import inf, isfinite, nan, sqrt

import numpy as np

from slimdown.stats.clusters import Drawn, Floats
from slimdown.stats.paired import DUST, Estimate, is_binary, numbers, t_quantile


def forgetting_rate(
    before: Sequence[float] | Floats,
    after: Sequence[float] | Floats,
    chance: float = 0.0,
    clusters: Sequence[str] | None = None,
) -> Estimate | None:
    """The share of what the base had above `chance` that is gone, 1 - (A_tuned - c) / (A_base - c).

    Mai 2025, section 2.4, with c = 0; a share of 1, below 0 for a gain. The interval is Fieller's (1954) for a base
    above chance: every rate that the two means and their covariance do not rule out. Where they do not rule out a base
    at chance, no rate can be told, though one side may be bounded: value and standard error are then nan, and the other
    bound is infinite. None where nothing at all is ruled out. No base is left out for scoring low: those that remained
    would be the lucky ones, and their intervals too low.

    Independent 0/1 scores count half a question more lost and half a one more gained, so that no change at all has an
    interval too, and so do clusters whose noise looks smaller than that. Graded scores that all lost the same share
    have no interval, nor has all right before and all wrong after at a chance of a half.

    >>> rate = forgetting_rate([1] * 60 + [0] * 40, [1] * 30 + [0] * 60 + [1] * 10)
    >>> round(rate.value, 3), round(rate.low, 3), round(rate.high, 3)
    (0.333, 0.148, 0.496)
    >>> forgetting_rate([0, 0, 0], [1, 0, 0]) is None
    True
    """
    x, y = numbers(before), numbers(after)
    drawn = Drawn.of(len(x), clusters)
    if len(x) < 2:
        return None
    base, tuned = float(x.mean()) - chance, float(y.mean()) - chance
    counted = is_binary(x) and is_binary(y)
    covariances = [_of_counts(x, y)] if counted else []
    if drawn.member is not None or not counted:
        covariances.append(drawn.covariance(np.stack([x, y])))
    quantile = t_quantile(drawn.degrees_of_freedom)
    kept = [_kept(base, tuned, quantile**2 * covariance) for covariance in covariances]
    low, high = 1 - max(high for _, high in kept), 1 - min(low for low, _ in kept)
    if not isfinite(low) and not isfinite(high):
        return None
    if not isfinite(low) or not isfinite(high):
        return Estimate(nan, nan, low, high)
    slope = np.array([-tuned / base, 1.0])
    error = (
        max(sqrt(max(0.0, float(slope @ covariance @ slope))) for covariance in covariances) / base
    )
    value = 1 - tuned / base
    return Estimate(value, error, low, high) if error > DUST else Estimate(value, nan, nan, nan)


def _of_counts(x: Floats, y: Floats) -> Floats:
    """The covariance of two means of independent 0/1 scores, half a question added to the lost and to the gained."""
    n = len(x) + 1
    both = float((x * y).sum()) / n
    before, after = both + (float((x > y).sum()) + 0.5) / n, both + (float((y > x).sum()) + 0.5) / n
    shared = both - before * after
    return np.array([[before * (1 - before), shared], [shared, after * (1 - after)]]) / n


def _kept(base: float, tuned: float, scaled: Floats) -> tuple[float, float]:
    """The ratios tuned / base, for a base above 0, that are not ruled out; infinite where there is no end.

    scaled: the covariance of base and tuned times the squared quantile. A ratio r is kept where
    (tuned - r base)^2 <= scaled variance of (tuned - r base), a quadratic in r.
    """
    a, b, c = base**2 - scaled[0, 0], base * tuned - scaled[0, 1], tuned**2 - scaled[1, 1]
    inside = b**2 - a * c
    if a == 0 or (a < 0 and inside <= 0) or (a > 0 and base <= 0):
        return -inf, inf
    root = sqrt(max(0.0, inside))
    one, other = sorted(((b - root) / a, (b + root) / a))
    if a > 0:
        return float(one), float(other)
    # The rest is what is outside of both; of it, a base above 0 has the side on which a base at 0 would leave tuned.
    return (float(other), inf) if tuned * scaled[0, 0] > base * scaled[0, 1] else (-inf, float(one))
