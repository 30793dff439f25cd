"""Sequential testing: p-values that stay valid whenever an evaluation stops.

Two fifths of the error are kept for the look at all questions. The looks before it share the rest.
Each p-value is divided by its look's share. Without a change, the distribution of the smallest
quotient follows from how many questions the looks have in common (recursive integration, Armitage,
McPherson and Rowe 1969; as in group-sequential trials, Lan and DeMets 1983).
docs/studies/statistics.md says what is guaranteed.
"""

from functools import lru_cache
from itertools import pairwise
from math import ceil, log, pi, sqrt

import numpy as np
import scipy
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FIRST_BLOCK = 32  # questions; fewer seldom decide anything
GROWTH = 1.4  # of all asked so far; so at most two sevenths are asked in vain
EARLY_SHARE = 0.6  # of the error, for the looks before all questions are asked
_MIDDLE, _WIDTH = 1300, 1.0  # of the bell over log(questions) by which early looks share it
_TOO_NEAR = 1.05  # a look that adds fewer than a twentieth counts as independent of the one before
_FAR = 9.0  # standard errors; no mean lies further below
_LOG_RATIOS = np.linspace(log(1e-15), 0.0, 60)
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(96)  # of an integral from -1 to 1


def block_ends(n: int) -> tuple[int, ...]:
    """Return how many of `n` questions have been asked after each block; the last is `n`.

    Base and tuned model get the same blocks, stopped early or not, so that half precision rounds
    alike. A last block of few questions is joined to the one before.

    >>> block_ends(20), block_ends(100)
    ((20,), (32, 45, 63, 100))
    """
    ends, size = [], FIRST_BLOCK
    while size * sqrt(GROWTH) < n:
        ends.append(size)
        size = ceil(size * GROWTH)
    return (*ends, n)


def share_error(plan: tuple[int, ...]) -> Floats:
    """Return each look's share of the error, [looks]; early looks near `_MIDDLE` get the most.

    Args:
        plan: questions at each look; the last is all of them.
    """
    before = scipy.special.ndtr(np.log(np.array(plan) / _MIDDLE) / _WIDTH)
    spent = [0.0, *(EARLY_SHARE * before[:-1] / before[-1]), 1.0]
    return np.array([later - earlier for earlier, later in pairwise(spent)])


def combine_looks(p_values: Floats, plan: tuple[int, ...]) -> Floats:
    """Combine the p-values of looks into one that holds at whichever look you stop.

    Args:
        p_values: [..., looks], of the looks so far.
        plan: questions at all looks, past and to come; empty: there is one look.
    """
    if not plan:
        return p_values[..., 0]
    ratios = (p_values / share_error(plan)[: p_values.shape[-1]]).min(axis=-1)
    with np.errstate(divide="ignore"):
        log_ratios = np.clip(np.log(ratios), _LOG_RATIOS[0], _LOG_RATIOS[-1])
    log_chances = np.interp(log_ratios, _LOG_RATIOS, _log_chances(plan))
    return np.asarray(np.minimum(1.0, ratios * np.exp(log_chances - log_ratios)))


@lru_cache(maxsize=64)
def _log_chances(plan: tuple[int, ...]) -> Floats:
    """Return for each ratio the log chance that any p-value over its look's share is as small."""
    shares = share_error(plan)
    return np.log([_chance_of_any(np.exp(ratio) * shares, plan) for ratio in _LOG_RATIOS])


def _chance_of_any(levels: Floats, plan: tuple[int, ...]) -> float:
    """Compute the chance that a mean is significant at any look, although its true value is 0.

    The mean is taken as normal and counted in its own standard errors at each look (its z score).
    It is significant at a look if its one-sided p-value is below the look's level. The distribution
    of z at one look gives that at the next one, by an integral over 96 points. Where two looks are
    near each other, the result is an upper bound.

    Args:
        levels: The one-sided level of each look; above 0.
        plan: The number of questions at each look, ascending.
    """
    total = 0.0  # the chance that the mean was significant at a look so far
    # Of the last look that was integrated: its questions, the points where its z may lie, and the
    # chance to be near each point and not significant so far. Before any question, z is 0.
    last_n, last_z, masses = 0, np.zeros(1), np.ones(1)
    # The z score above which a look is significant. It must lie above -_FAR, where integrals begin.
    bounds = np.maximum(-scipy.special.ndtri(levels), 1 - _FAR)
    for n, level, bound in zip(plan, levels, bounds, strict=True):
        if n < _TOO_NEAR * last_n:
            # What it adds is at most its level, the chance to be significant at this look alone.
            total += float(level)
            continue
        # z is the sum of n answers divided by their spread and by sqrt(n). The answers of the last
        # look give it this mean, and those that came since then vary it by this spread.
        mean = sqrt(last_n / n) * last_z
        spread = sqrt(1 - last_n / n)
        total += float(masses @ scipy.special.ndtr((mean - bound) / spread))
        # The values of z that are not significant: 96 points from -_FAR to the bound.
        half = (bound + _FAR) / 2
        z = half * (_NODES + 1) - _FAR
        densities = _density((z[:, None] - mean) / spread) @ masses / spread
        last_n, last_z, masses = n, z, densities * _NODE_WEIGHTS * half
    return min(1.0, total)


def _density(z: Floats) -> Floats:
    return np.exp(-(z**2) / 2) / sqrt(2 * pi)
