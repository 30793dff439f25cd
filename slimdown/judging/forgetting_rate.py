"""The forgetting rate: the share of the base's score that is gone, with an interval."""

from functools import partial
from math import atan2, cos, inf, isfinite, nan, pi, sin, sqrt, tan

import numpy as np

from slimdown.stats.estimates import Estimate, Sampling, to_array
from slimdown.stats.likelihood import ALPHA
from slimdown.stats.sequential import Floats

_CLEAR = 1e-5  # p-value of a base at chance; below it, luck hardly raised the base
_ALPHA_NEAR_CHANCE = 0.001


def forgetting_rate(
    before: Floats, after: Floats, chance: float = 0.0, sampling: Sampling | None = None
) -> Estimate | None:
    """Estimate which share of the score above chance is gone, 1 - (A_tuned - c) / (A_base - c).

    "Slimming Down LLMs Without Losing Their Minds" (2025), section 2.4, has c = 0. The rate is a
    share of 1, below 0 for a gain. Like Fieller's interval (1954), this one holds every rate that
    the two scores do not rule out. It uses the test of `likelihood.py`, which rules out a rate r if
    (tuned - c) - (1 - r) (base - c) is shown not to be 0 on average.

    Args:
        before, after: [n], scores from 0 to 1 of the same questions.
        chance: what guessing scores.
        sampling: how the questions were drawn.

    Returns:
        The rate. None if the base is not shown to score above chance: the interval then lacks one
        end or both. If the base is not clearly above chance (p < 0.00001), the interval is one of
        99.9 %, so that at most 5 % of the intervals that are shown miss.

    >>> before = np.repeat([1.0, 0.0], [60, 40])
    >>> rate = forgetting_rate(before, np.repeat([1.0, 0.0, 1.0], [30, 60, 10]))
    >>> round(rate.value, 3), round(rate.low, 3), round(rate.high, 3)
    (0.333, 0.137, 0.496)
    """
    x, y = to_array(before), to_array(after)
    sampling = sampling or Sampling()
    (x_of, y_of, weights), test = sampling.build_test([x, y], 0.0, 1.0)
    counts, bound = test.counts[-1], test.highest
    change_test = test
    has_one_size = np.ptp(weights) < 1e-9  # of its clusters, if it has any
    if sampling.is_simple and has_one_size and np.isin([x_of, y_of], (0.0, 1.0)).all():
        change_test = test.of_change(x_of != y_of)
    n = float(counts.sum())  # questions, or clusters
    base, tuned = (float(counts @ (weights * (z - chance))) / n for z in (x_of, y_of))
    if len(x) < 2 or base <= 1e-12:
        return None

    # Near chance, a base has an interval only if luck raised it: shown intervals miss more often.
    of_base = (weights * (x_of - chance))[None], np.array([-bound * chance])
    alpha = ALPHA if test.p_values_of(*of_base)[0] < _CLEAR else _ALPHA_NEAR_CHANCE

    # The ratio tuned / base is the tangent of an angle. No score is below 0, so with a chance of 0
    # no ratio is.
    y_all = np.append(y_of, [0.0, 1.0, 0.0, 1.0]) - chance  # and the corners of possible scores
    x_all = np.append(x_of, [0.0, 0.0, 1.0, 1.0]) - chance

    def p_values(angles: Floats, sign: int) -> Floats:
        turned = [sign * (cos(a) * y_all - sin(a) * x_all) for a in angles]
        values, extremes = np.split(np.array(turned), [len(x_of)], axis=1)
        return change_test.p_values_of(weights * values, bound * extremes.min(axis=1))

    angle, ends = atan2(tuned, base), []
    for end, sign in ((-pi / 2 if chance else 0.0, 1), (pi / 2, -1)):
        # Search outwards from the measured ratio. Ratios beyond the first one that is ruled out
        # would fit only a base below chance.
        of_side, points = partial(p_values, sign=sign), np.linspace(angle, end, 17)
        is_out = of_side(points[1:]) <= alpha / 2
        first = int(is_out.argmax())
        if is_out.any():
            end = test.find_end(of_side, points[first + 1], points[first], alpha / 2)
        ends.append(end)
    high, low = (1 - tan(a) if abs(a) < pi / 2 - 1e-6 else -inf * a for a in ends)
    if not isfinite(low) or not isfinite(high):
        return None
    residuals = weights * (y_of - chance - (x_of - chance) * tuned / base)
    error = sqrt(float(counts @ residuals**2)) / n / base
    error = nan if sampling.looks or error < 1e-12 else error
    return Estimate(1 - tuned / base, error, low, high)
