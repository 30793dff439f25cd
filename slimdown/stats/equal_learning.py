"""Compare groups of runs at equal learning: what each lost where all had learned as much.

Who learned more has usually lost more, so groups that learned unequally say nothing of a means.
Each run has a curve over the scale of its adapter (`slimdown scale`). Between two scales learning
and each question's change are interpolated, to the level that every run reaches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from slimdown.config.schema import Role
from slimdown.stats.estimates import to_weighted
from slimdown.stats.findings import BenchmarkChange
from slimdown.stats.scaling import ScaledFindings
from slimdown.stats.seeds import SeedMean, split_noise
from slimdown.stats.sequential import Floats
from slimdown.stats.trials import measure_learning


@dataclass(frozen=True)
class LearningCurve:
    """One run at growing scales of its adapter, beginning with the base."""

    learned: Floats  # [scales], growing; the first is 0
    scales: Floats  # [scales]
    changes: dict[str, Floats]  # by retained benchmark, [scales, questions], weighted
    question_hashes: dict[str, str]

    def at(self, learned: float) -> tuple[float, dict[str, Floats]]:
        """Return the scale at which so much is learned, and each question's change there."""
        upper = int(np.searchsorted(self.learned, learned).clip(1, len(self.learned) - 1))
        low, high = self.learned[upper - 1], self.learned[upper]
        share = float((learned - low) / (high - low)) if high > low else 0.0
        mix = np.array([1 - share, share])
        scale = float(mix @ self.scales[upper - 1 : upper + 1])
        return scale, {name: mix @ c[upper - 1 : upper + 1] for name, c in self.changes.items()}


@dataclass(frozen=True)
class EqualLearning:
    """What one group of runs lost where it had learned as much as every other group."""

    value: str  # of the setting
    n_runs: int
    scale: float  # mean over the runs
    changes: dict[str, SeedMean]  # by retained benchmark, from the base
    # the same from the first group, run by run of one seed; empty where their seeds differ
    from_first: dict[str, SeedMean]


def build_curve(points: Sequence[ScaledFindings]) -> LearningCurve:
    """Build a run's curve of those scales that teach more than every smaller one.

    Args:
        points: Of scales above 0, on the same questions.
    """
    ordered = sorted(points, key=lambda point: point.scale)
    learned, increasing = [0.0], []
    for point in ordered:
        if (amount := measure_learning(point.findings)) <= learned[-1]:
            continue  # more of the adapter teaches no more
        learned.append(amount)
        increasing.append(point)
    benchmarks = ordered[0].findings.benchmarks
    retained = {name: b for name, b in benchmarks.items() if b.role is Role.retained}
    changes = {}
    for name in retained:
        rows = [_weigh(point.findings.benchmarks[name]) for point in increasing]
        base = np.zeros_like(_weigh(retained[name]))
        changes[name] = np.array([base, *rows])
    scales = np.array([0.0, *(point.scale for point in increasing)])
    hashes = {name: benchmark.question_hash for name, benchmark in retained.items()}
    return LearningCurve(np.array(learned), scales, changes, hashes)


def compare_at_equal_learning(
    groups: Mapping[str, Mapping[str, LearningCurve]],
) -> tuple[float, list[EqualLearning]]:
    """Compare groups at the most that every run of every group has learned.

    Args:
        groups: By the value of a setting, the curve of the run of each seed.

    Returns:
        The common level of learning, and each group there; 0 and nothing where a run learned
        nothing, or where runs were asked different questions.
    """
    curves = [curve for group in groups.values() for curve in group.values()]
    level = min((float(curve.learned[-1]) for curve in curves), default=0.0)
    if level <= 0 or any(c.question_hashes != curves[0].question_hashes for c in curves):
        return 0.0, []
    at_level = {
        value: {seed: curve.at(level) for seed, curve in group.items()}
        for value, group in groups.items()
    }
    first, rows = next(iter(at_level.values())), []
    for value, group in at_level.items():
        changes, from_first = {}, {}
        for name in curves[0].changes:
            changes[name] = _average([of_seed[name] for _, of_seed in group.values()])
            if group is not first and group.keys() == first.keys():
                from_first[name] = _average(
                    [of_seed[name] - first[seed][1][name] for seed, (_, of_seed) in group.items()]
                )
        scale = float(np.mean([scale for scale, _ in group.values()]))
        rows.append(EqualLearning(value, len(group), scale, changes, from_first))
    return level, rows


def _average(changes: Sequence[Floats]) -> SeedMean:
    """Average runs; of one run no interval would hold, since its level is a guess, too."""
    mean = float(np.mean(changes))
    return split_noise(np.array(changes)) if len(changes) > 1 else SeedMean(mean, nan, nan, nan)


def _weigh(benchmark: BenchmarkChange) -> Floats:
    return to_weighted(benchmark.primary.difference.changes, benchmark.primary.difference.sampling)
