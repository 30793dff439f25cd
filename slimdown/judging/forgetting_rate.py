"""The forgetting rate: the share of the base's score that is gone, with an interval."""

from functools import partial
from math import atan2, cos, nan, pi, sin, sqrt, tan

import numpy as np

from slimdown.stats.estimates import Estimate, Sampling, to_array
from slimdown.stats.likelihood import ALPHA
from slimdown.stats.sequential import Floats


def forgetting_rate(
    before: Floats, after: Floats, sampling: Sampling | None = None
) -> Estimate | None:
    """Estimate which share of the base's score is gone, 1 - A_tuned / A_base.

    It is that of "Slimming Down LLMs Without Losing Their Minds" (2025), section 2.4: a share of 1,
    below 0 for a gain. Like Fieller's interval (1954), this one holds every rate that the two
    scores do not rule out. It uses the test of `likelihood.py`, which rules out a rate r if
    tuned - (1 - r) base is shown not to be 0 on average.

    Args:
        before, after: [n], scores from 0 to 1 of the same questions.
        sampling: how the questions were drawn.

    Returns:
        The rate with its 95 % interval; None if the base is not shown to score above 0.

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
    base, tuned = (float(counts @ (weights * z)) / n for z in (x_of, y_of))
    if len(x) < 2 or base <= 1e-12:
        return None

    # The ratio tuned / base is the tangent of an angle.
    y_all = np.append(y_of, [0.0, 1.0, 0.0, 1.0])  # and the corners of possible scores
    x_all = np.append(x_of, [0.0, 0.0, 1.0, 1.0])

    def p_values(angles: Floats, sign: int) -> Floats:
        turned = [sign * (cos(a) * y_all - sin(a) * x_all) for a in angles]
        values, extremes = np.split(np.array(turned), [len(x_of)], axis=1)
        return change_test.p_values_of(weights * values, bound * extremes.min(axis=1))

    angle, ends = atan2(tuned, base), []
    for end, sign in ((0.0, 1), (pi / 2, -1)):  # no score is below 0, so no ratio is
        # Search outwards from the measured ratio, up to the first one that is ruled out.
        of_side, points = partial(p_values, sign=sign), np.linspace(angle, end, 17)
        is_out = of_side(points[1:]) <= ALPHA / 2
        first = int(is_out.argmax())
        if is_out.any():
            end = test.find_end(of_side, points[first + 1], points[first], ALPHA / 2)
        ends.append(end)
    if ends[1] > pi / 2 - 1e-6:  # a base of 0 is not ruled out
        return None
    high, low = (1 - tan(end) for end in ends)
    residuals = weights * (y_of - x_of * tuned / base)
    error = sqrt(float(counts @ residuals**2)) / n / base
    error = nan if sampling.looks or error < 1e-12 else error
    return Estimate(1 - tuned / base, error, low, high)
