"""The forgetting rate: the share of the base's score that is gone, with an interval."""

from math import atan2, nan, pi, sqrt

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

    signs, sides = np.array([1.0, -1.0])[:, None, None], np.arange(2)

    def p_values(angles: Floats) -> Floats:  # [sides, points]: lower ratios, and higher ones
        cosines, sines = np.cos(angles)[:, :, None], np.sin(angles)[:, :, None]
        turned = signs * (cosines * y_all - sines * x_all)
        values, extremes = np.split(turned, [len(x_of)], axis=2)
        rows = (weights * values).reshape(-1, len(x_of))
        least = bound * extremes.min(axis=2).ravel()
        return change_test.p_values_of(rows, least).reshape(angles.shape)

    # Search outwards from the measured ratio, up to the first one that is ruled out.
    angle, limits = atan2(tuned, base), (0.0, pi / 2)  # no score is below 0, so no ratio is
    points = np.linspace((angle, angle), limits, 17, axis=1)
    is_out = p_values(points[:, 1:]) <= ALPHA / 2
    first = is_out.argmax(axis=1)
    between = points[sides, first + 1], points[sides, first]
    ends = np.where(is_out.any(axis=1), test.find_ends(p_values, *between, ALPHA / 2), limits)
    if ends[1] > pi / 2 - 1e-6:  # a base of 0 is not ruled out
        return None
    high, low = 1 - np.tan(ends)
    residuals = weights * (y_of - x_of * tuned / base)
    error = sqrt(float(counts @ residuals**2)) / n / base
    error = nan if sampling.looks or error < 1e-12 else error
    return Estimate(1 - tuned / base, error, float(low), float(high))
