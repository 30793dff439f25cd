"""What the statistics promise, by simulation: false alarms, coverage of intervals, power.

    python -m bench.statistics

Each row draws pairs of evaluations of n questions: a share `base` right before, of which some are lost, and some of the
wrong ones gained.
"""

import argparse
import time

import numpy as np
from scipy import stats

from slimdown.config import BenchmarkConfig
from slimdown.forgetting import Verdict, verdict
from slimdown.paired import difference
from slimdown.ratio import forgetting_rate

MARGIN = BenchmarkConfig.margin

# name, n, base, lost and gained as shares of all questions
NULL = [
    ("MMLU-CS", 100, 0.47, 0.10, 0.10),
    ("HellaSwag, first 200", 200, 0.37, 0.05, 0.05),
    ("GSM8K", 1319, 0.35, 0.05, 0.05),
    ("HellaSwag", 10042, 0.61, 0.02, 0.02),
]
LOSS = [
    ("at the margin, nothing gained", 200, 0.50, 0.02, 0.0),
    ("at the margin, nothing gained", 1000, 0.50, 0.02, 0.0),
    ("at the margin, GSM8K", 1319, 0.35, 0.06, 0.04),
    ("MMLU-CS, 13 points as in Mai 2025", 100, 0.47, 0.20, 0.07),
    ("HellaSwag, first 200, 5 points", 200, 0.37, 0.08, 0.03),
    ("GSM8K, 3 points", 1319, 0.35, 0.0625, 0.0325),
    ("HellaSwag, 3 points", 10042, 0.61, 0.05, 0.02),
]


def pairs(n: int, base: float, lost: float, gained: float, repeats: int, seed: int) -> np.ndarray:
    """[repeats, 2, n] scores, before and after."""
    draw = np.random.default_rng(seed)
    cells = draw.choice(4, size=(repeats, n), p=[base - lost, lost, gained, 1 - base - gained]).astype(np.int8)
    return np.stack([(cells < 2).astype(float), ((cells == 0) | (cells == 2)).astype(float)], axis=1)


def row(name: str, n: int, base: float, lost: float, gained: float, repeats: int, seed: int) -> str:
    """One line of the table, in percent of the draws."""
    mcnemar, t_test, unpaired, covered, rate_covered, rate_defined = 0, 0, 0, 0, 0, 0
    verdicts = dict.fromkeys(Verdict, 0)
    change, rate = gained - lost, (lost - gained) / base
    for before, after in pairs(n, base, lost, gained, repeats, seed):
        d = difference(before, after)
        mcnemar += d.p_value < 0.05
        t_test += d.t_test_p_value < 0.05
        unpaired += float(stats.ttest_ind(before, after).pvalue) < 0.05
        covered += d.low <= change <= d.high
        verdicts[verdict(d.value, d.p_value, d.equivalence_p_value(MARGIN))] += 1
        if found := forgetting_rate(before, after):
            rate_defined += 1
            rate_covered += found.low <= rate <= found.high
    percent = [f"{100 * count / repeats:.1f}" for count in (mcnemar, t_test, unpaired, covered)]
    percent.append(f"{100 * rate_covered / rate_defined:.1f}" if rate_defined else "")
    percent += [f"{100 * count / repeats:.1f}" for count in verdicts.values()]
    return f"| {name} | {n:,} | {100 * change:+.1f} | {' | '.join(percent)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    print(f"percent of {args.repeats:,} simulated pairs of evaluations; margin {100 * MARGIN:g} points; one benchmark")
    names = " | ".join(verdict.value for verdict in Verdict)
    print(
        f"| case | n | true change | McNemar | paired t | unpaired t | interval covers | FR interval covers | {names} |"
    )
    print("|---|---:|---:|" + "---:|" * (5 + len(Verdict)))
    for case in [*NULL, *LOSS]:
        print(row(*case, repeats=args.repeats, seed=args.seed), flush=True)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
