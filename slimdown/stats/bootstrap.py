"""The ratio of two sums over documents, with an interval by the bootstrap.

The test of slimdown needs scores between 0 and 1. Bits have no highest value, so their interval
rests on a condition: that no rare document hides a large change. `python -m bench.statistics` shows
how often the interval misses with and without it.
"""

import numpy as np

from slimdown.stats.sequential import Floats

FEWEST = 30  # documents; fewer get no interval
_RESAMPLES = 2_000
_MOST_NUMBERS = 2_000_000  # worked on at once
_TAIL = 0.01  # at each end: with 2.5 %, unequal lengths and skew would let 5 to 12 % miss


def find_ratio_interval(numerators: Floats, denominators: Floats) -> tuple[float, float]:
    """Return an interval of at least 95 % for the ratio of the sums (bootstrap-t, Hall 1988).

    The documents are drawn again and again. Each time the error of the ratio is divided by its
    standard error, and the extremes of these quotients give the interval.

    Args:
        numerators: [n], one for each document.
        denominators: [n], likewise; their sum is above 0.

    Returns:
        Both ends; nan where there are too few documents, one is not finite, or all have one ratio.
    """
    n, total = len(numerators), denominators.sum()
    is_finite = bool(np.isfinite([numerators, denominators]).all())
    if n < FEWEST or not is_finite or not total > 0:
        return np.nan, np.nan
    ratio = numerators.sum() / total
    error = float(np.sqrt(((numerators - ratio * denominators) ** 2).sum())) / total
    if error < 1e-12:
        return np.nan, np.nan
    draw, quotients = np.random.default_rng(0), list[Floats]()
    rows = max(1, _MOST_NUMBERS // n)
    for begin in range(0, _RESAMPLES, rows):
        size = min(rows, _RESAMPLES - begin)
        counts = draw.multinomial(n, np.full(n, 1 / n), size).astype(float)
        sums = counts @ denominators
        ratios = counts @ numerators / sums
        # the sum of (numerator - ratio * denominator)^2 over the documents that were drawn
        squares = counts @ numerators**2 - 2 * ratios * (counts @ (numerators * denominators))
        squares += ratios**2 * (counts @ denominators**2)
        errors = np.sqrt(np.maximum(squares, 1e-300)) / sums
        quotients.append((ratios - ratio) / errors)
    lowest, highest = np.quantile(np.concatenate(quotients), (_TAIL, 1 - _TAIL))
    return float(ratio - highest * error), float(ratio - lowest * error)
