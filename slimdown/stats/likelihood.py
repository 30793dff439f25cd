"""How much less likely a true change makes graded scores than the likeliest one would: the test of their likelihoods.

Nothing is assumed but that questions are independent and that scores lie between 0 and 1. A t-test of answers among
which large losses are rare takes what it has not seen for impossible: of 32 questions it rules a loss out wrongly in 43
instead of 5 % (docs/studies/statistics.md).
"""

from dataclasses import dataclass
from math import copysign, sqrt

import numpy as np
import scipy

from slimdown.stats.clusters import Floats

_STEPS = 100  # of a search that doubles its digits at each; it ends by itself after about ten


@dataclass(frozen=True, eq=False)
class Graded:
    """How independent scores between 0 and 1 changed.

    Empirical likelihood (Owen 1988): how likely the answers are at best, each with a chance of its own, if the mean of
    all is what is claimed not to be; the signed root of twice its logarithm is taken for a standard normal number. Half
    an answer is added (of Chen, Variyath and Abraham 2008 the idea), which goes as far as any can against the claim.
    """

    differences: Floats  # after - before, each within [-1, 1]
    counts: Floats  # how often each was seen

    @classmethod
    def of(cls, differences: Floats) -> "Graded":
        """Of one difference a question."""
        values, counts = np.unique(differences, return_counts=True)
        return cls(values, counts.astype(float))

    def p_value_above(self, threshold: float) -> float:
        """How likely data like these are if the true change is `threshold` or less; one-sided."""
        return _p_value(self.differences - threshold, self.counts, -1 - threshold)

    def p_value_below(self, threshold: float) -> float:
        """How likely data like these are if the true change is `threshold` or more; one-sided."""
        return _p_value(threshold - self.differences, self.counts, threshold - 1)


def _p_value(excess: Floats, counts: Floats, least: float) -> float:
    """How likely so much is if its mean were 0 or less, where it can be as little as `least`."""
    if least >= 0:
        return float(least == 0)
    if excess.max() <= 0:
        return 1.0
    x, counts = np.append(excess, least), np.append(counts, 0.5)
    # The mean is 0 if each answer is as likely as counts / (1 + tilt x), summed to 1; the logarithm is concave in tilt.
    low, high, tilt = -1 / x.max(), -1 / x.min(), 0.0
    for _ in range(_STEPS):
        shares = x / (1 + tilt * x)
        slope = float(counts @ shares)
        low, high = (tilt, high) if slope > 0 else (low, tilt)
        step = tilt + slope / float(counts @ shares**2)
        step = step if low < step < high else (low + high) / 2
        if abs(step - tilt) <= 1e-12 * abs(step):
            break
        tilt = step
    root = copysign(sqrt(2 * max(0.0, float(counts @ np.log1p(tilt * x)))), tilt)
    return float(scipy.special.ndtr(-root))
