"""One answer for all retained benchmarks: is the tuned model worse on what it should have kept?

Both models' answers to a question are exchanged at random, independently for every question: a
permutation test, whose statistic is the mean of the benchmarks' changes, each benchmark alike.
McNemar's pooled test beside it weighs each question alike (both poolings after Kuebler et al. 2026,
arXiv 2602.10144).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import numpy as np

from slimdown.config.schema import Role
from slimdown.stats.estimates import mcnemar_p_value, to_weighted
from slimdown.stats.findings import BenchmarkChange
from slimdown.stats.likelihood import ALPHA

_N_DRAWS = 100_000  # of exchanges: a p-value of 0.05 is exact to 0.001


@dataclass(frozen=True)
class OverallChange:
    """The change of several benchmarks together."""

    benchmarks: tuple[str, ...]
    mean: float  # of the benchmarks' changes, a share
    p_value: float  # of the permutation test; two-sided
    mcnemar_p_value: float  # of all questions' 0/1 scores together; nan where scores are graded

    @property
    def answer(self) -> str:
        """Worse, better or undecided."""
        if self.p_value >= ALPHA:
            return "undecided"
        return "worse" if self.mean < 0 else "better"


def judge_overall(benchmarks: Mapping[str, BenchmarkChange]) -> OverallChange:
    """Judge the retained benchmarks together; those that stopped early are left out.

    Args:
        benchmarks: By name, of one run.

    Returns:
        The answer; undecided with a p-value of 1 where no benchmark is left.
    """
    chosen = {
        name: b.primary.difference
        for name, b in benchmarks.items()
        if b.role is Role.retained and not b.is_stopped
    }
    names = tuple(chosen)
    if not chosen:
        return OverallChange(names, nan, 1.0, nan)
    mean = float(np.mean([d.value for d in chosen.values()]))
    generator, exchanged = np.random.default_rng(0), np.zeros(_N_DRAWS)
    for d in chosen.values():
        # Questions whose change is as large are exchanged together: so many of them by a binomial.
        sizes, counts = np.unique(np.abs(to_weighted(d.changes, d.sampling)), return_counts=True)
        for size, count in zip(sizes[sizes > 0], counts[sizes > 0], strict=True):
            n_kept = generator.binomial(count, 0.5, _N_DRAWS)
            exchanged += size * (2 * n_kept - count) / (d.n * len(chosen))
    n_extreme = int((np.abs(exchanged) >= abs(mean) - 1e-12).sum())
    p_value = (1 + n_extreme) / (1 + _N_DRAWS)  # the data are one of the exchanges
    is_binary = all(d.is_binary for d in chosen.values())
    pooled = np.concatenate([d.changes for d in chosen.values()])
    mcnemar = mcnemar_p_value(pooled) if is_binary else nan
    return OverallChange(names, mean, p_value, mcnemar)
