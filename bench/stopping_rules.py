"""Find how few questions any stopping rule could ask, beside slimdown's.

    python -m bench.stopping_rules

In the normal model, of a change that all questions show in most cases. The best of all rules that
look as often follows by backward induction (Barber and Jennison 2002): each question costs 1, and a
wrong claim and a missed one have the prices at which both are as frequent as with slimdown's rule.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from slimdown.stats.likelihood import ALPHA
from slimdown.stats.sequential import block_ends, share_error

Floats = NDArray[np.float64]

_Z = np.linspace(-8, 10, 601)  # where the mean change may be, in its standard errors
_STEP = _Z[1] - _Z[0]


class Looks:
    """Looks at a mean of normal changes, claimed to be above 0 once it lies beyond a look's bound.

    Args:
        plan: [looks], questions at each.
        drift: The true mean, in standard deviations of one question's change.
    """

    def __init__(self, plan: Floats, drift: float) -> None:
        self.plan, self.drift = plan, drift
        shared = np.sqrt(plan[:-1] / plan[1:])
        # by truth and look: how likely each z is followed by each z at the next, [from, to]
        self.moves: dict[float, list[Floats]] = {0.0: [], drift: []}
        for truth, moves in self.moves.items():
            shifts = truth * np.diff(plan) / np.sqrt(plan[1:])
            for r, shift in zip(shared, shifts, strict=True):
                spread = np.sqrt(1 - r**2)
                density = norm.pdf((_Z - (r * _Z[:, None] + shift)) / spread) / spread
                moves.append(density * _STEP)

    def measure(self, bounds: Floats) -> tuple[float, float, float]:
        """Return how often no change and this one are claimed, and the mean of questions asked."""
        claimed = {}
        for truth, moves in self.moves.items():
            mass, ended = norm.pdf(_Z - truth * np.sqrt(self.plan[0])) * _STEP, []
            for k, bound in enumerate(bounds):
                mass = mass @ moves[k - 1] if k else mass
                beyond = np.clip((_Z - bound) / _STEP + 0.5, 0, 1)
                ended.append(mass @ beyond)
                mass = mass * (1 - beyond)
            claimed[truth] = np.cumsum(ended)
        goes_on = 1 - claimed[self.drift][:-1]
        mean_questions = self.plan[0] + np.diff(self.plan) @ goes_on
        return float(claimed[0.0][-1]), float(claimed[self.drift][-1]), float(mean_questions)

    def find_cheapest(self, wrong: float, missed: float) -> Floats:
        """Return the bounds of least price, for the price of a wrong claim and of a missed one."""
        bounds, rest = np.empty(len(self.plan)), np.full(len(_Z), missed)
        for k in reversed(range(len(self.plan))):
            n = self.plan[k]
            if k < len(self.plan) - 1:
                rest = self.plan[k + 1] - n + self.moves[self.drift][k] @ rest
            # how much likelier this z is without a change
            claim = wrong * np.exp(n * self.drift**2 / 2 - self.drift * np.sqrt(n) * _Z)
            bounds[k] = np.interp(0.0, np.log(rest) - np.log(claim), _Z)
            rest = np.minimum(claim, rest)
        return bounds


def measure_rule(looks: Looks) -> tuple[float, float]:
    """Return how often slimdown's rule shows the change, and the mean of questions it asks."""
    shares = share_error(tuple(int(n) for n in looks.plan))

    def find_bounds(log_ratio: float) -> Floats:
        return np.asarray(norm.isf(np.exp(log_ratio) * shares))

    ratio = solve(lambda r: looks.measure(find_bounds(r))[0] - ALPHA / 2, -9, 0)
    return looks.measure(find_bounds(ratio))[1:]


def count_fewest(looks: Looks, power: float) -> float:
    """Return the fewest mean questions of any rule with so much power and an error of 2.5 %."""

    def find_bounds(log_missed: float) -> Floats:
        missed = np.exp(log_missed)
        wrong = solve(
            lambda w: looks.measure(looks.find_cheapest(np.exp(w), missed))[0] - ALPHA / 2, 2, 22
        )
        return looks.find_cheapest(np.exp(wrong), missed)

    missed = solve(lambda m: looks.measure(find_bounds(m))[1] - power, 4, 18)
    return looks.measure(find_bounds(missed))[2]


def solve(excess: Callable[[float], float], low: float, high: float) -> float:
    """Return where a monotone function is 0."""
    return float(brentq(excess, low, high, xtol=1e-3))


def main() -> None:
    n = 1319
    often = np.unique(np.round([*np.geomspace(32, n / 1.02, 60), n]))
    print("| true change | flips, % | shown, % | asked, % | fewest | fewest, 61 looks |")
    print("|---|---:|---:|---:|---:|---:|")
    for change, flips in ((0.03, 0.095), (0.03, 0.12), (0.03, 0.2)):
        drift = change / np.sqrt(flips - change**2)
        looks = Looks(np.array(block_ends(n), float), drift)
        power, mean_questions = measure_rule(looks)
        fewest = count_fewest(looks, power), count_fewest(Looks(often, drift), power)
        counts = [count / n for count in (mean_questions, *fewest)]
        shares = " | ".join(f"{100 * share:.1f}" for share in (flips, power, *counts))
        print(f"| -{100 * change:.1f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
