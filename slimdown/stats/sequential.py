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
    """Compute the chance that a normal mean is beyond any look's level, if nothing changed.

    It is beyond a level if its one-sided p-value at that look is smaller.

    The mean at each look is counted in its own standard errors. The distribution of the mean at one
    look gives that at the next, by an integral over 96 points. Where two looks are near each other,
    the result is an upper bound.

    Args:
        levels: The one-sided level of each look; above 0.
        plan: The number of questions at each look, ascending.
    """
    total = 0.0  # the chance that a look so far was beyond its level
    last_n = 0  # questions at the last look that was integrated
    # mass[i]: the chance that no look was beyond its level, and that the mean is near z[i] now
    z = mass = np.zeros(0)
    # The integral below goes from -_FAR to a look's bound, so the bound lies above -_FAR.
    bounds = np.maximum(-scipy.special.ndtri(levels), 1 - _FAR)
    for n, level, bound in zip(plan, levels, bounds, strict=True):
        if last_n and n < _TOO_NEAR * last_n:
            total += float(level)  # the chance of this look alone: at least what it adds
            continue
        # Where the mean may lie without being beyond: 96 points from -_FAR to the bound.
        half = (bound + _FAR) / 2
        below = half * (_NODES + 1) - _FAR
        if not last_n:  # the first look
            total = float(level)
            mass = _density(below) * _NODE_WEIGHTS * half
        else:
            # Given z at the last look, the mean is normal around shared * z now.
            shared = sqrt(last_n / n)
            spread = sqrt(1 - shared**2)
            total += float(mass @ scipy.special.ndtr((shared * z - bound) / spread))
            moved = _density((below[:, None] - shared * z) / spread)
            mass = moved @ mass / spread * _NODE_WEIGHTS * half
        z, last_n = below, n
    return min(1.0, total)


def _density(z: Floats) -> Floats:
    return np.exp(-(z**2) / 2) / sqrt(2 * pi)
