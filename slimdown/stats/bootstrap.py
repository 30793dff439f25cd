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
    """Return an interval of at least 95 % for the ratio of two sums (bootstrap-t, Hall 1988).

    The documents are drawn with replacement, 2,000 times. The error of a draw is its ratio minus
    the ratio of all documents. It is divided by the draw's standard error. The extremes of these
    quotients give the interval.

    Args:
        numerators: [n], one for each document.
        denominators: [n], likewise; their sum is above 0.

    Returns:
        The lower and the upper end. Both are nan if there are fewer than `FEWEST` documents, if a
        number is not finite, or if all documents have the same ratio.
    """
    n, total = len(numerators), denominators.sum()
    is_finite = bool(np.isfinite([numerators, denominators]).all())
    if n < FEWEST or not is_finite or not total > 0:
        return np.nan, np.nan
    ratio = numerators.sum() / total
    standard_error = float(np.sqrt(((numerators - ratio * denominators) ** 2).sum())) / total
    if standard_error < 1e-12:  # all documents have the same ratio
        return np.nan, np.nan
    quotients = _draw_quotients(numerators, denominators, ratio)
    lowest, highest = np.quantile(quotients, (_TAIL, 1 - _TAIL))
    # Where draws lie far above the measured ratio, the true ratio may lie as far below it.
    return float(ratio - highest * standard_error), float(ratio - lowest * standard_error)


def _draw_quotients(numerators: Floats, denominators: Floats, ratio: float) -> Floats:
    """Return the error of each draw's ratio, divided by the standard error of that draw.

    Args:
        numerators: [n], one for each document.
        denominators: [n], likewise.
        ratio: The ratio of all documents, from which a draw's ratio has its error.

    Returns:
        [draws], the quotients.
    """
    n = len(numerators)
    generator = np.random.default_rng(0)  # always the same, so a report can be repeated
    most_draws = max(1, _MOST_NUMBERS // n)  # at once
    quotients = list[Floats]()
    for begin in range(0, _RESAMPLES, most_draws):
        n_draws = min(most_draws, _RESAMPLES - begin)
        # [draws, n]: how often each draw holds each document
        counts = generator.multinomial(n, np.full(n, 1 / n), n_draws).astype(float)
        sums = counts @ denominators
        ratios = counts @ numerators / sums
        # the sum of (numerator - ratio * denominator)^2 over the documents that were drawn
        squares = counts @ numerators**2 - 2 * ratios * (counts @ (numerators * denominators))
        squares += ratios**2 * (counts @ denominators**2)
        errors = np.sqrt(np.maximum(squares, 1e-300)) / sums
        quotients.append((ratios - ratio) / errors)
    return np.concatenate(quotients)
