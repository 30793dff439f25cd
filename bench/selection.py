"""What looking at many runs does, and what the cures do, by simulation.

    python -m bench.selection

A table of 30 runs and 4 benchmarks in which nothing changed: how often is any cell called forgotten? And the best of 30
runs whose true loss is exactly the budget: how often does it pass the gate of `slimdown.check`, which is to let through
5 %? Each run's answers flip by themselves, or the same questions flip in every run (for each run with a chance of a
half), which is nearer to what real runs do.
"""

import argparse
import time
from functools import cache

import numpy as np

from slimdown.stats.changes import Verdict, verdict
from slimdown.stats.paired import ALPHA, Difference, difference, holm

RUNS, BENCHMARKS, BUDGET = 30, 4, 0.02


@cache
def changed(lost: int, gained: int, n: int) -> Difference:
    """The difference of `n` questions of which so many were lost and gained."""
    before, after = np.zeros(n), np.zeros(n)
    before[:lost], after[lost : lost + gained] = 1, 1
    return difference(before, after)


def flips(
    draw: np.random.Generator, n: int, lost: float, gained: float, runs: int, shared: bool
) -> np.ndarray:
    """[runs, 2] answers lost and gained of `n` questions, each with the given chances."""
    if not shared:
        return draw.multinomial(n, [lost, gained, 1 - lost - gained], size=runs)[:, :2]
    flippable = draw.multinomial(n, [2 * lost, 2 * gained, 1 - 2 * (lost + gained)])[:2]
    return draw.binomial(flippable, 0.5, size=(runs, 2))


def forgotten(cells: list[Difference]) -> bool:
    """Whether any cell is called forgotten, corrected for all of them as runs and tables are."""
    p_values, equivalence = (
        holm([d.p_value for d in cells]),
        holm([d.equivalence_p_value(BUDGET) for d in cells]),
    )
    return any(
        verdict(d.value, p, equal) is Verdict.forgotten
        for d, p, equal in zip(cells, p_values, equivalence, strict=True)
    )


def any_false_verdict(n: int, shared: bool, repeats: int, seed: int) -> tuple[float, float]:
    """How often some cell of a table in which nothing changed is called forgotten: as each run says, and corrected."""
    draw = np.random.default_rng(seed)
    alone = together = 0
    for _ in range(repeats):
        tables = [flips(draw, n, 0.05, 0.05, RUNS, shared) for _ in range(BENCHMARKS)]
        runs = [[changed(*map(int, table[i]), n) for table in tables] for i in range(RUNS)]
        alone += any(map(forgotten, runs))
        together += forgotten([d for run in runs for d in run])
    return alone / repeats, together / repeats


def best_passes(
    n: int, change: float, shared: bool, repeats: int, seed: int
) -> tuple[float, float, float, float]:
    """How often the best of `RUNS` runs passes a budget of 2 points, and how much better it looks than it is.

    First where all questions choose and judge, then where half of them choose and the other half judges: the share that
    passes and the mean bias of the change, in turn.
    """
    draw = np.random.default_rng(seed)
    lost, gained = 0.05 - change / 2, 0.05 + change / 2
    found = []
    for _ in range(repeats):
        halves = [flips(draw, part, lost, gained, RUNS, shared) for part in (n - n // 2, n // 2)]
        row = []
        for choose, judge, of in ((sum(halves), sum(halves), n), (halves[0], halves[1], n // 2)):
            best = int(np.argmax(choose[:, 1] - choose[:, 0]))
            d = changed(*map(int, judge[best]), of)
            row += [d.p_value_above(-BUDGET) < ALPHA, d.value - change]
        found.append(row)
    return tuple(np.mean(found, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    settings = [(n, shared) for n in (300, 1319) for shared in (False, True)]
    print(
        f"percent of {args.repeats:,} simulated tables of {RUNS} runs, {BENCHMARKS} benchmarks, 10 % of answers flip\n"
    )
    print(
        "| n | flippable questions | any false forgotten, each run by itself | corrected for the table |"
    )
    print("|---:|---|---:|---:|")
    for n, shared in settings:
        alone, together = any_false_verdict(n, shared, args.repeats, args.seed)
        print(
            f"| {n:,} | {'the same' if shared else 'each run its own'} | {100 * alone:.1f} | {100 * together:.1f} |"
        )
    print(
        "\n| n | true change | flippable questions | best of all passes | its bias | held-out half passes | its bias |"
    )
    print("|---:|---:|---|---:|---:|---:|---:|")
    for n, shared in settings:
        for change in (-BUDGET, 0.0):
            passes, bias, held_out, held_out_bias = best_passes(
                n, change, shared, args.repeats, args.seed
            )
            whose = "the same" if shared else "each run its own"
            print(
                f"| {n:,} | {100 * change:+.0f} | {whose} | {100 * passes:.1f} | {100 * bias:+.1f} "
                f"| {100 * held_out:.1f} | {100 * held_out_bias:+.1f} |"
            )
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
